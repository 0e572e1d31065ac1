"""Packs the browser extension after checking it.

    python -m tools.extension

writes dist/tunesmith-extension-VERSION.zip. The same files give the same bytes. Refused are permissions and hosts
beyond those of the store listing, code from elsewhere, code from text, markup from text, and stray files.
"""

from __future__ import annotations

import json
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXTENSION = ROOT / "extension"
PERMISSIONS = {"activeTab", "scripting", "storage", "sidePanel"}
HOSTS = {"http://127.0.0.1/*", "http://localhost/*"}
KEYS = {
    "manifest_version", "name", "short_name", "version", "description", "minimum_chrome_version", "icons", "action",
    "commands", "background", "side_panel", "options_ui", "permissions", "host_permissions", "incognito",
    "content_security_policy",
}  # fmt: skip
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "http://127.0.0.1:* http://localhost:*",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
KINDS = {".json", ".js", ".html", ".css", ".png"}
FORBIDDEN = {  # in scripts
    "markup from text": r"\.(inner|outer)HTML\b|insertAdjacentHTML|document\.write|createContextualFragment|srcdoc",
    "code from text": r"\beval\s*\(|\bFunction\s*\(|set(Timeout|Interval)\s*\(\s*[\"'`]|javascript:",
    "code from elsewhere": r"importScripts|import\s*\(|(from|import)\s+[\"'](?!\.{1,2}/)|new\s+(Shared)?Worker\b",
    "other ways out": r"XMLHttpRequest|WebSocket|EventSource|sendBeacon|RTCPeerConnection|chrome\.(cookies|history)",
}
ADDRESS = re.compile(r"""(?:(?:https?|wss?):|["'`])//([a-z0-9.-]+)""", re.IGNORECASE)
NAMED = {"127.0.0.1", "localhost", "raw.githubusercontent.com", "jsonresume.org", "schema.org"}  # texts and a $schema
MOST_BYTES = 500_000
LONGEST = {"name": 75, "short_name": 12, "description": 132}  # the store's limits, in characters
EARLIEST = (1980, 1, 1, 0, 0, 0)


def troubles(folder: Path = EXTENSION, version: str | None = None) -> list[str]:
    """What keeps the extension in `folder` from being packed, each with its file; empty when nothing does."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return [*_manifest(manifest, version), *_files(folder, manifest)]


def _manifest(manifest: dict[str, Any], version: str | None) -> Iterator[str]:
    where = "manifest.json:"
    if extra := set(manifest) - KEYS:
        yield f"{where} keys that are not needed: {', '.join(sorted(extra))}"
    if manifest.get("manifest_version") != 3:
        yield f"{where} manifest_version is not 3"
    if version is not None and manifest.get("version") != version:
        yield f"{where} version is {manifest.get('version')}, the project's {version}"
    if set(manifest.get("permissions", [])) != PERMISSIONS:
        yield f"{where} permissions are not {', '.join(sorted(PERMISSIONS))}"
    if set(manifest.get("host_permissions", [])) != HOSTS:
        yield f"{where} host_permissions are not {', '.join(sorted(HOSTS))}"
    policy = manifest.get("content_security_policy", {})
    parts = dict(part.strip().split(" ", 1) for part in policy.get("extension_pages", "").split(";") if " " in part)
    if set(policy) != {"extension_pages"} or parts != POLICY:
        yield f"{where} the content security policy is not the strict one"
    for key, most in LONGEST.items():
        if not 0 < len(manifest.get(key, "")) <= most:
            yield f"{where} {key} is missing or longer than {most} characters"


def _files(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    used = {"manifest.json", *_named(manifest)}
    for name, path in found.items():
        if path.suffix not in KINDS or path.is_symlink():
            yield f"{name}: not a kind of file that belongs here"
        elif path.suffix in {".js", ".html", ".css"}:
            text = path.read_text(encoding="utf-8")
            yield from _text(name, text)
            used |= _mentions(path, text, folder)
    yield from (f"{name}: named, but not there" for name in sorted(used - set(found)))
    yield from (f"{name}: used by nothing" for name in sorted(set(found) - used))
    if sum(path.stat().st_size for path in found.values()) > MOST_BYTES:
        yield f"the files together are larger than {MOST_BYTES:,} bytes"


def _named(value: Any) -> Iterator[str]:
    """File names in the manifest."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _named(each)
    elif isinstance(value, str) and re.fullmatch(r"[\w/-]+\.(js|html|css|png|json)", value):
        yield value


def _text(name: str, text: str) -> Iterator[str]:
    if name.endswith(".js"):
        for what, pattern in FORBIDDEN.items():
            if hit := re.search(pattern, text):
                yield f"{name}: {what}: {hit[0]}"
    if name.endswith(".html"):
        if re.search(r"<script(?![^>]*\ssrc=)|<style|\son\w+\s*=|\sstyle\s*=|<(iframe|object|embed|base)\b", text):
            yield f"{name}: scripts, styles or handlers within the page, or something embedded"
        for address in re.findall(r"(?:src|href|action)\s*=\s*[\"']([^\"']*)", text):
            if not re.fullmatch(r"[\w/.-]+", address):
                yield f"{name}: an address that is no file of the extension: {address}"
    if name.endswith(".css") and re.search(r"@import|url\(|expression\(", text):
        yield f"{name}: styles that load something"
    for host in ADDRESS.findall(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)):
        if "." in host and host.lower().strip(".") not in NAMED:
            yield f"{name}: names another computer: {host}"


def _mentions(path: Path, text: str, folder: Path) -> set[str]:
    """Files that a page, a style or a script names: relative to itself, or (scripts for pages) to the extension."""
    relative = re.findall(r"""(?:src|href)=["']([\w/.-]+)["']|from ["'](\.{1,2}/[\w/.-]+)["']""", text)
    found = {(path.parent / (one or other)).resolve() for one, other in relative}
    found |= {(folder / name).resolve() for name in re.findall(r'"(page/[\w-]+\.js)"', text)}
    return {each.relative_to(folder.resolve()).as_posix() for each in found}


def pack(folder: Path, target: Path) -> Path:
    """Writes the files of `folder` to the zip `target`: sorted, undated, uncompressed: settled bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as made:
        for path in sorted((each for each in folder.rglob("*") if each.is_file()), key=lambda each: each.as_posix()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EARLIEST)
            entry.external_attr, entry.create_system = 0o644 << 16, 3
            made.writestr(entry, path.read_bytes())
    return target


def main() -> None:
    """Checks and packs; ends with 1 and the list of what is wrong."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if found := troubles(EXTENSION, version):
        raise SystemExit("\n".join(found))
    made = pack(EXTENSION, ROOT / "dist" / f"tunesmith-extension-{version}.zip")
    print(f"{made.relative_to(ROOT)}: {made.stat().st_size:,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
