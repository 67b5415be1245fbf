"""Detect the type of a file by its first bytes, whatever its name says.

This module imports no torch.
"""

from __future__ import annotations

import re

HEADER_SIZE = 1024  # bytes that the patterns need; a comment may precede the first tag of a page
_BOM = b"\xef\xbb\xbf"

# Patterns start at the first byte; the first match decides.
IMAGE_TYPES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "BMP": rb"BM.{4}\0{4}",
    "GIF": rb"GIF8[79]a",
    "PSD": rb"8BPS\0[\x01\x02]",
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF-",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
    "FITS": rb"SIMPLE  =",
    "SVG": rb"(?i)\s*(?=<)(?:(?!<html|<!doctype html).)*<svg\b",
    "HEIC": rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "AVIF": rb".{4}ftypavi[fs]",
    "ICO": rb"\0\0\x01\0.{4}",
    "PPM": rb"P[1-7]\s+(?:#|\d|WIDTH)",
    "OpenEXR": rb"v/1\x01",
    "DICOM": rb".{128}DICM",
}
SAFETENSORS, PICKLE, ZIP = "a safetensors file", "a pickle", "a zip archive"
_LFS, _EMPTY = "a git-LFS pointer", "an empty file"
_TEXTS = {
    _EMPTY: rb"\Z",
    _LFS: rb"version https://git-lfs\.github\.com/spec/",
    "an HTML page": rb"(?i)\s*<(?:(?!\?xml)|.*<html\b)",
    "an XML text": rb"\s*<",
    "a JSON text": rb'(\xef\xbb\xbf)?\s*(?:\{\s*["}]|\[\s*[\[{"\d\]])',
}
_VIDEOS = {"an MP4 video": rb".{4}ftyp", "a Matroska video": rb"\x1a\x45\xdf\xa3", "an AVI video": rb"RIFF.{4}AVI "}
_ARCHIVES = {
    ZIP: rb"PK(?:\x03\x04|\x05\x06)",
    "a gzip archive": rb"\x1f\x8b\x08",
    "a tar archive": rb".{257}ustar",
    "a bzip2 archive": rb"BZh[1-9]",
    "an xz archive": rb"\xfd7zXZ\0",
    "a zstd archive": rb"\x28\xb5\x2f\xfd",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive": rb"Rar!\x1a\x07",
}
_TENSORS = {
    SAFETENSORS: rb".{4}\0{4}\{",
    PICKLE: rb"\x80[\x02-\x05]",
    "an HDF5 file": rb"\x89HDF\r\n\x1a\n",
    "a NumPy file": rb"\x93NUMPY",
    "a GGUF file": rb"GGUF",
}
# A safetensors file may begin with any four bytes, so its pattern comes first.
_PATTERNS = _TENSORS | IMAGE_TYPES | _TEXTS | _VIDEOS | _ARCHIVES
_COMPILED_PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in _PATTERNS.items()}
_FIXES = (
    dict.fromkeys(_TEXTS, "fetch the file itself again")
    | dict.fromkeys(_ARCHIVES, "unpack it")
    | {_LFS: "git lfs pull"}
)


def detect_file_type(header: bytes) -> str:
    """Return the type of a file: a key of `IMAGE_TYPES`, or words such as "an HTML page"; "" if unknown.

    Args:
        header: the first `HEADER_SIZE` bytes of the file.
    """
    return next((name for name, pattern in _COMPILED_PATTERNS.items() if pattern.match(header.removeprefix(_BOM))), "")


def describe_wrong_type(header: bytes, expected: str) -> tuple[str, str]:
    """Return the problem with a file of the wrong type, and the fix; each may be empty.

    Args:
        header: the first `HEADER_SIZE` bytes of the file.
        expected: the type that the caller needs, with its article.
    """
    file_type = detect_file_type(header)
    fix = _FIXES.get(file_type, "")
    if file_type == _LFS:
        size = re.search(rb"^size (\d{1,18})\r?$", header, re.MULTILINE)
        real_size = f" (real size {int(size[1]):,} bytes)" if size else ""
        return f"this is {file_type}, not the file{real_size}", fix
    if file_type == _EMPTY:
        return "the file is empty", fix
    description = f"an image ({file_type})" if file_type in IMAGE_TYPES else file_type
    return f"this is {description}, not {expected}" if file_type else "", fix
