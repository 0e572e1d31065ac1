"""The adapter as one zip archive, for sending by mail. Export targets are modules; exporting/job.py describes them."""

from __future__ import annotations

import zipfile

from tunesmith.exporting.job import File, Job


def write(job: Job, *, compress: bool = True) -> list[File]:
    """Writes adapter.zip with the files that `train` wrote."""
    path = job.out("adapter_zip") / "adapter.zip"
    if job.must_write(path, "adapter_zip"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")  # a file under its final name is complete
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
            for file in sorted(job.adapter.iterdir()):
                archive.write(file, file.name)
        partial.rename(path)
    return [File("adapter.zip", path, commands={"Shell": f"unzip {path.name} -d adapter"})]


def check(job: Job, file: File) -> list[str]:
    """Returns what is wrong with the archive: it must hold the bytes of the adapter's files."""
    with zipfile.ZipFile(file.path) as archive:
        wrong = [
            each.name
            for each in sorted(job.adapter.iterdir())
            if each.name not in archive.namelist() or archive.read(each.name) != each.read_bytes()
        ]
    return [f"{name} is missing or differs" for name in wrong]
