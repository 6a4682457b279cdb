"""Triton kernels: a folder per family; in each, a file of launchers with the op's name, and files of kernels beside it.

Imported only where Triton is present: see ``pydl.ops._triton``.
"""
