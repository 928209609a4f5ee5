"""Numbers of bytes as text."""

GIB, MIB = 2**30, 2**20


def shown(size: int) -> str:
    """22.17 GiB, or 10.68 MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.2f} MiB"
