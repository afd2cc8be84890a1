"""Fetch one large file over HTTP: progress, resume after an interruption, checksum."""

import hashlib
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from tqdm import tqdm


def download(url: str, path: Path, md5: str) -> None:
    """Download url to path, going on from `path.part` if an earlier call was interrupted.

    ValueError if the complete file has another md5 (it is deleted then); OSError if the host cannot be reached (what
    has arrived is kept).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    start = partial.stat().st_size if partial.exists() else 0
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={start}-"}), timeout=60) as response:
            resumed = response.status == 206  # a host that cannot resume answers 200 and sends everything
            _receive(response, partial, start if resumed else 0)
    except (URLError, ConnectionError, TimeoutError, HTTPException) as error:
        if getattr(error, "code", None) != 416:  # 416: nothing is left to send
            raise OSError(f"{url}: {str(error).strip() or type(error).__name__}; the same command goes on") from None
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        partial.unlink()
        raise ValueError(f"{url}: the downloaded file has md5 {found}, expected {md5}; it was deleted, try again")
    partial.replace(path)


def _receive(response, partial: Path, start: int) -> None:
    size = int(response.headers.get("Content-Length", 0)) + start
    progress = tqdm(total=size or None, initial=start, unit="B", unit_scale=True, desc=partial.stem)
    with partial.open("ab" if start else "wb") as file, progress:
        while block := response.read(1 << 16):
            progress.update(file.write(block))
    if size and partial.stat().st_size < size:
        raise OSError(
            f"the connection broke after {partial.stat().st_size:,} of {size:,} bytes; the same command goes on"
        )
