"""Every class and function of bridge's own that a saved Keras model may name, registered with Keras by this import.

Import this module inside functions only: it imports keras.
"""

from __future__ import annotations

from bridge.frameworks.keras_cells import RecurrentCell
from bridge.frameworks.keras_legacy.functions import keras2_hard_sigmoid
from bridge.frameworks.keras_modules import ImportedGraph, ImportedModel

__all__ = ["ImportedGraph", "ImportedModel", "RecurrentCell", "keras2_hard_sigmoid"]
