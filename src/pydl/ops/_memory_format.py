"""Which memory format a result takes, decided once in Python for kernel and fake alike."""


def is_channels_last(t):
    """Whether the strides of ``t`` say channels_last, as torch decides it; ambiguous ones say contiguous."""
    stride = t.stride()
    if stride[3] < stride[1]:  # the common case: rows of pixels
        return False
    size, smallest = t.shape, 0
    for d in (1, 3, 2, 0):
        if size[d] == 0 or stride[d] < smallest:
            return False
        if d == 0 and smallest == stride[1]:  # one channel of one pixel
            return False
        smallest = stride[d] * size[d] if size[d] > 1 else stride[d]
    return True
