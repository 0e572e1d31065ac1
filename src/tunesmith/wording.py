"""How counts, sizes and durations are written for people."""

from __future__ import annotations

import time


def plural(noun: str, count: int = 2) -> str:
    """Returns the plural of a noun, such as 'topics' or 'categories'; the noun itself if `count` is 1."""
    if count == 1:
        return noun
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun: 1 row, 2,400 rows."""
    return f"{count:,} {plural(noun, count)}"


def show_bytes(count: float) -> str:
    """Returns a number of bytes with its binary unit: 512 bytes, 3 KiB, 4.2 MiB, 120 MiB, 1.5 GiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            digits = 1 if unit == "GiB" or (unit == "MiB" and count < 10 * size) else 0
            return f"{count / size:.{digits}f} {unit}"
    return f"{count:.0f} bytes"


def show_seconds(seconds: float) -> str:
    """Returns an estimated duration: 40 ms, 4.2 s, 12 min, 3.1 h."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def show_duration(seconds: float) -> str:
    """Returns a measured duration: 42 s, 3:05 min, 1:12 h."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d} h"


def show_time(seconds: float) -> str:
    """Returns a Unix timestamp as local time, with the date if it is not today."""
    date, today = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if date[:3] == today[:3] else "%Y-%m-%d %H:%M", date)
