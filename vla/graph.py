"""ONNX graphs of small models, run on the processor by ONNX Runtime.

A model of a few million numbers spends as long on calling operations as on their arithmetic when
each is called by itself. Here all of a pass is one call, and matrices are packed beforehand. What
comes out stands in memory that the caller gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from torch import Tensor

OPSET = 20  # the first with GELU
FLOAT = TensorProto.FLOAT
_TYPES = {
    torch.float32: (FLOAT, np.float32),
    torch.int64: (TensorProto.INT64, np.int64),
    torch.uint8: (TensorProto.UINT8, np.uint8),
}
_FATAL = 4
_END = 2**31 - 1


class Graph:
    """Puts a graph together. Names of values are what operations take and return."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._names: dict[str, str] = {}  # of outputs: an operation that renames would copy
        self._count = 0

    def input(
        self, name: str, shape: Sequence[int | str], dtype: torch.dtype = torch.float32
    ) -> str:
        """Declares an input; a length that varies has a name in its shape."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype][0], shape))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str]) -> None:
        """Declares the result of an operation as an output, under a name."""
        self._names[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, FLOAT, shape))

    def constant(self, value: Tensor | NDArray | Sequence[int]) -> str:
        """A value that is always the same."""
        name = self._name("constant")
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """An operation of ONNX with one result."""
        return self.nodes(operation, 1, *inputs, **attributes)[0]

    def nodes(
        self, operation: str, results: int, *inputs: str, **attributes: Any
    ) -> tuple[str, ...]:
        """An operation of ONNX with several results."""
        names = tuple(self._name(operation) for _ in range(results))
        self._nodes.append(helper.make_node(operation, list(inputs), list(names), **attributes))
        return names

    def linear(self, rows: str, matrix: Tensor, bias: Tensor) -> str:
        """Rows (n, K) times a matrix (K, M), plus a bias (M,)."""
        return self.node("Gemm", rows, self.constant(matrix), self.constant(bias))

    def normalise(self, rows: str, scale: Tensor, shift: Tensor, epsilon: float) -> str:
        """``torch.nn.functional.layer_norm`` over the last dimension."""
        given = self.constant(scale), self.constant(shift)
        return self.node("LayerNormalization", rows, *given, axis=-1, epsilon=epsilon)

    def reshape(self, value: str, *shape: int) -> str:
        """Another shape: -1 for the length that is left, 0 for one that stays."""
        return self.node("Reshape", value, self.constant(shape))

    def slice(self, rows: str, begin: int, end: int = _END) -> str:
        """Some of the rows; negative numbers count from the end."""
        return self.node("Slice", rows, *(self.constant([n]) for n in (begin, end, 0)))

    def compile(self, threads: int) -> Compiled:
        """Readies the graph to run.

        Args:
            threads: Threads for one operation.
        """
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [self._names.get(name, name) for name in names]
        graph = helper.make_graph(
            self._nodes, "onset", self._inputs, self._outputs, self._constants
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return Compiled(model.SerializeToString(), threads)

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{what}_{self._count}"


class Compiled:
    """A graph that is ready to run."""

    def __init__(self, model: bytes, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # A thread that waits must not keep a robot's loop from the core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _FATAL
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Runs once, into the outputs' memory.

        Args:
            inputs: By name, contiguous and on the processor. None of them is changed.
            outputs: By name, contiguous float32. None may share memory with an input.

        Raises:
            RuntimeError: A tensor does not fit, or an operation failed; outputs may be half done.
        """
        binding = self._session.io_binding()
        try:
            for name, tensor in inputs.items():
                kind = _TYPES[tensor.dtype][1]
                binding.bind_input(name, "cpu", 0, kind, tensor.shape, _address(name, tensor))
            for name, tensor in outputs.items():
                address = _address(name, tensor)
                binding.bind_output(name, "cpu", 0, np.float32, tensor.shape, address)
            self._session.run_with_iobinding(binding)
        except (Fail, InvalidArgument, RuntimeException) as error:  # these are no RuntimeErrors
            raise RuntimeError(str(error)) from error


def _address(name: str, tensor: Tensor) -> int:
    """Where its numbers stand, one after the other."""
    if not tensor.is_contiguous():
        raise RuntimeError(f"{name}: strides {tensor.stride()} of {tuple(tensor.shape)}")
    return tensor.data_ptr()
