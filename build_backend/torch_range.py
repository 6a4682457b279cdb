"""The torch that pydl takes; run as a script it prints pip's requirement."""

OLDEST, BEYOND = (2, 11), (2, 14)  # from the first to before the second; the tests pass on both ends


def requirement():
    """The range as pip reads it."""
    return f"torch>={OLDEST[0]}.{OLDEST[1]},<{BEYOND[0]}.{BEYOND[1]}"


if __name__ == "__main__":
    print(requirement())
