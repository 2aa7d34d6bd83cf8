"""Whole Flax models to ONNX: recurrent layers as fused operators, the rest of the traced jaxpr by a table of our own.

Why a table of our own and not jax2onnx (0.17.1), which has one too: it requires the CPU wheel of onnxruntime, which
overwrites onnxruntime-gpu, and an orbax-checkpoint below 0.11.37; it never writes a recurrent operator; and 201
`except Exception` let an operator that could not be carried pass as something else.

Order of the files: `sizes` and `terms` are what a lowered value is, `walk` goes through a jaxpr, `table` lists the
rules of all primitives and the files around it hold them; `recurrence` is the primitive that stands for a recurrent
layer (`norms` that of a LayerNorm), `stubs_nnx` and `stubs_linen` put it in during the trace; `signature` and `trace`
make the jaxpr with symbolic sizes; `export` and `execute` are what the doors call.
"""
