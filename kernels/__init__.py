"""Installed as ``pydl.kernels``, for the Triton kernels in it; the C++ kernels beside them are compiled into ``pydl._C``."""
