"""Installed as ``pydl.kernels`` for its Triton kernels; the C++ kernels are compiled into ``pydl._C``."""
