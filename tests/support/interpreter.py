"""Triton's interpreter, made to round as GPUs do, so that its results can be held to the ordinary tolerances.

The interpreter converts float32 to bfloat16 by cutting bits off, and multiplies the bit patterns of bfloat16 matrices
as if they were integers (so in Triton 3.6 and 3.9); until Triton 3.8 its loops with bounds known at run time fail under
NumPy 2.4, which turns only 0-dimensional arrays into integers; and it prepares triton.language anew for each call of a
device function, which took half of the tests' time, and the shape and NumPy's dtype anew for each tensor, which took a
quarter of the rest. Imported by conftest.py where TRITON_INTERPRET=1, before any kernel runs.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def to_bfloat16(values):
    """The bits of float32 ``values`` rounded to nearest even; nan stays nan."""
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def install():
    """Replaces the two conversions, the matrix product, the conversion of a scalar to an integer, and the preparing."""
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot
    patch_tensor = interpreter._patch_lang_tensor

    def convert_float(values, source, target, rounding_mode):
        if source == tl.float32 and target == tl.bfloat16:
            return to_bfloat16(np.ascontiguousarray(values)).reshape(values.shape)
        if source == tl.bfloat16 and target == tl.float32:
            return from_bfloat16(np.ascontiguousarray(values)).reshape(values.shape)
        return convert(values, source, target, rounding_mode)

    def create_dot(self, a, b, accumulator, *options):
        def widened(x):
            return interpreter.TensorHandle(from_bfloat16(x.data), tl.float32) if x.dtype == tl.bfloat16 else x

        return dot(self, widened(a), widened(b), accumulator, *options)

    def patch_lang_tensor(tensor, *scope):  # newer versions undo what they set, by a scope
        patch_tensor(tensor, *scope)
        set_attribute = scope[0].set_attr if scope else setattr
        set_attribute(tensor, "__index__", lambda self: int(self.handle.data.item()))

    patch_lang, patched = interpreter._patch_lang, set()

    def patch_lang_once(function):
        modules = {module.__name__ for module in function.__globals__.values() if module is tl or module is tl.core}
        if modules <= patched:  # a device function, called by a kernel or function that is running
            return None
        outermost = not patched
        patched.update(modules)
        scope = patch_lang(function)
        if outermost and scope is not None:  # until Triton 3.5 nothing is undone
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    make_tensor, shapes = tl.tensor.__init__, {}

    def make_tensor_of_known_shape(self, handle, type):
        key = (*type.shape,) if type.is_block() else ()
        if key not in shapes:
            make_tensor(self, handle, type)
            shapes[key] = {"shape": self.shape, "numel": self.numel}
            assert vars(self) == {"handle": handle, "type": type, "dtype": type.scalar, **shapes[key]}
            return
        self.__dict__.update(shapes[key], handle=handle, type=type, dtype=type.scalar)

    numpys, known = interpreter._get_np_dtype, {}

    def numpys_dtype(dtype):
        name = dtype.scalar.name
        if name not in known:
            known[name] = numpys(dtype)
        return known[name]

    tl.tensor.__init__ = make_tensor_of_known_shape
    interpreter._get_np_dtype = numpys_dtype
    interpreter._patch_lang = patch_lang_once
    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot
