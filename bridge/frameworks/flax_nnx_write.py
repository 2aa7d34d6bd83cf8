"""Cells into nnx modules: the caller's own, or fresh native layers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bridge.cell import Cell
from bridge.errors import NotRepresentable, UsageError
from bridge.frameworks.flax_cells import layout_options
from bridge.frameworks.flax_import import NATIVE, NativeCell
from bridge.frameworks.flax_nnx_cells import OwnCell
from bridge.frameworks.flax_nnx_import import native_cell
from bridge.frameworks.flax_nnx_read import LAYOUTS, recurrent_modules
