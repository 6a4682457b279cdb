"""pytest plugin of the host twin's process: the CPU's choices of algorithm are not the CUDA kernels'."""


def pytest_collection_modifyitems(config, items):
    """Leaves out bodies that force an algorithm of the CPU: the same CUDA kernels would run again."""
    repeated = [
        item for item in items if hasattr(item, "callspec") and item.callspec.params.get("algorithm", "auto") != "auto"
    ]
    config.hook.pytest_deselected(items=repeated)
    items[:] = [item for item in items if item not in repeated]
