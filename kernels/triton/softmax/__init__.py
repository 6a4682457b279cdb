"""Softmax and the losses made of it."""
