"""Functions of Keras 2 that Keras 3 lacks, under a name of their own.

Import this module inside functions only: it imports keras.
"""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="bridge")  # type: ignore[untyped-decorator]
def keras2_hard_sigmoid(x: Any) -> Any:
    """clip(0.2 x + 0.5, 0, 1): hard_sigmoid of Keras 1 and 2. Keras 3 took the slope 1/6 and kept the name.

    Source: tf-keras 2.16.0 tf_keras/backend.py hard_sigmoid.
    """
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)
