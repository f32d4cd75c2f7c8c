"""Texts and token ids for bench/train.py, of documentation that every Debian machine can fetch.

    python bench/corpus.py --packages DEBS --into corpus

DEBS is a folder of packages, fetched by `apt-get download python3.11-doc linux-doc-6.1 …` (docs/quality.md has the
list), to which the standard library's sources are added. A document is kept if it reads like English, and a paragraph
once. Whole documents are held back for calibration and evaluation, so that no text serves two purposes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import io
import json
import platform
import re
import subprocess
import sysconfig
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hubbot.demo.tokenizer import Tokenizer, train_tokenizer, write_tokenizer

KINDS = "html page pod md txt rst dict py".split()
UNWANTED = re.compile(
    r"/_sources/|/genindex|modindex|/changelog|/copyright|/translations/|/devicetree/|/arch/|/core_arch/|/src/|/test/"
    r"|/html/libraries/|/share/help/(?!C/)|/(?!en-US)[a-z]{2}[-_][A-Z]{2}/"
)
FREQUENT = frozenset("the of to and is in that for it be with as this are by or an on not from can which if".split())
PROSE = 0.17  # of a document's words are among these; running English has 0.3 and an index of an API 0.05
PIECE = 6000  # characters of a document that stand behind one begin token
HELD_OUT = 40  # of as many documents one is for calibration, and one for evaluation

_BLOCK = re.compile(
    r"</?(?:p|div|li|ul|ol|dl|dt|dd|h\d|tr|table|section|article|br|hr|title|note|item|steps|page)\b[^>]*>"
)
_HIDDEN = re.compile(r"<(script|style|nav|head|header|footer|form|svg|info|select)\b.*?</\1>|<!--.*?-->", re.DOTALL)
_PRE = re.compile(r"(<pre\b.*?</pre>|<code\b[^>]*\bmime=.*?</code>)", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    origin: str  # the package and its version
    name: str  # its path there
    text: str


def plain(kind: str, text: str) -> str:
    """The running text of a file: markup gone, a paragraph between empty lines."""
    if kind not in {"html", "page"}:
        return text
    parts = _PRE.split(_HIDDEN.sub(" ", text))
    for index in range(0, len(parts), 2):
        words = _BLOCK.sub("\n\n", re.sub(r"\s+", " ", parts[index]))
        parts[index] = re.sub(r" *\n\s*", "\n\n", re.sub(r"[ \t]+", " ", _TAG.sub("", words)))
    parts[1::2] = ["\n\n" + _TAG.sub("", part).strip("\n") + "\n\n" for part in parts[1::2]]
    return html.unescape("".join(parts)).replace("\u00b6", "")  # a sign that Sphinx puts behind headings


def reads_like_english(text: str) -> bool:
    words = re.findall(r"[a-z]+", text.lower())
    return len(words) > 50 and sum(word in FREQUENT for word in words) > PROSE * len(words)


def files(package: Path) -> dict[str, dict[str, bytes]]:
    """A package's files of each kind by their names, in an order that is no alphabet's."""
    found: dict[str, dict[str, bytes]] = {kind: {} for kind in KINDS}
    unpacking = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True)
    with tarfile.open(fileobj=io.BytesIO(unpacking.stdout)) as archive:
        for member in archive:
            endings = member.name.rsplit("/", 1)[-1].split(".")[:0:-1]
            kind = next((each for each in endings if each not in {"gz", "dz", "en"}), "")
            if kind in found and member.isfile() and not UNWANTED.search(member.name):
                found[kind][member.name] = archive.extractfile(member).read()
    return {kind: {name: named[name] for name in sorted(named, key=shuffled)} for kind, named in found.items()}


def shuffled(name: str) -> int:
    """A place in an order that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def documents(package: Path, *, at_most: int) -> Iterator[Document]:
    """What reads like English in the kind of file that a package has most of, up to a number of characters."""
    name, version = package.stem.split("_")[:2]
    origin = f"{name} {version.replace('%3a', ':')}"
    of_kind = files(package)
    kind = max(of_kind, key=lambda each: sum(map(len, of_kind[each].values())))
    for path, raw in of_kind[kind].items():
        content = gzip.decompress(raw) if path.endswith((".gz", ".dz")) else raw
        if content.count(b"the ") * 2000 < len(content):  # another language, or names: not worth taking apart
            continue
        text = plain(kind, content.decode("utf-8", errors="ignore").replace("\r", ""))
        for start in range(0, len(text), 200_000):  # a dictionary is one file
            part = text[start : start + 200_000]
            if reads_like_english(part):
                yield Document(origin=origin, name=f"{name}{path}:{start}", text=part)
                at_most -= len(part)
            if at_most < 0:
                return


def all_documents(packages: Path, *, at_most: int) -> Iterator[Document]:
    for package in sorted(packages.glob("*.deb")):
        yield from documents(package, at_most=at_most)
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("", "email", "asyncio", "concurrent/futures", "importlib", "unittest", "multiprocessing", "xml/etree"):
        for path in sorted((library / name).glob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore")
            yield Document(
                origin=f"standard library {platform.python_version()}", name=f"{name}/{path.name}", text=text
            )


def without_repeats(texts: list[Document]) -> Iterator[tuple[Document, list[str]]]:
    """Every document as pieces, of paragraphs that no document before it has."""
    seen: set[bytes] = set()
    for document in texts:
        pieces, length = [[]], 0
        for paragraph in re.split(r"\n\s*\n", document.text):
            mark = hashlib.blake2b("".join(paragraph.split()).lower().encode(), digest_size=8).digest()
            if not paragraph.strip() or mark in seen or _foreign(paragraph):
                continue
            seen.add(mark)
            if length + len(paragraph) > PIECE:
                pieces.append([])
                length = 0
            pieces[-1].append(paragraph.rstrip())
            length += len(paragraph)
        joined = ["\n\n".join(piece).strip("\n") for piece in pieces]
        yield document, [piece for piece in joined if len(piece) > 200]


def _foreign(paragraph: str) -> bool:
    return sum(ord(letter) > 127 for letter in paragraph) * 20 > len(paragraph)


def deal(pieces: list[tuple[Document, list[str]]]) -> dict[str, list[str]]:
    """Whole documents to training, calibration and evaluation."""
    dealt: dict[str, list[str]] = {"training": [], "calibration": [], "evaluation": []}
    for document, texts in pieces:
        part = {3: "calibration", 9: "evaluation"}.get(shuffled(document.name) % HELD_OUT, "training")
        dealt[part] += texts
    return dealt


def tokens(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """uint16 [tokens]: every text after its begin token."""
    parts = [np.array([tokenizer.bos_id(), *tokenizer.encode(text)], dtype=np.uint16) for text in texts]
    return np.concatenate(parts)


def sample_lines(texts: list[str], characters: int) -> Iterator[str]:
    """Lines for the tokenizer's training: of every n-th piece, so that all packages speak."""
    step = max(1, sum(map(len, texts)) // characters)
    for text in texts[::step]:
        yield from (line for line in text.splitlines() if line.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--at-most", type=int, default=6_000_000, help="characters of one package")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()
    args.into.mkdir(parents=True)
    texts = sorted(all_documents(args.packages, at_most=args.at_most), key=lambda document: shuffled(document.name))
    pieces = list(without_repeats(texts))
    dealt = deal(pieces)
    model = train_tokenizer(sample_lines(dealt["training"], 12_000_000), vocabulary=args.vocabulary)
    tokenizer = write_tokenizer(model, args.into, length=args.context)
    for part, name in (("training", "training"), ("evaluation", "heldout")):
        np.save(args.into / f"{name}.npy", tokens(tokenizer, dealt[part]))
    for part in ("calibration", "evaluation"):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in dealt[part])
        (args.into / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    report(args.into, pieces, dealt)


def report(into: Path, pieces: list[tuple[Document, list[str]]], dealt: dict[str, list[str]]) -> None:
    """What each package gave, into recipe.json and to the reader."""
    given: Counter[str] = Counter()
    for document, texts in pieces:
        given[document.origin] += sum(len(text.encode()) for text in texts)
    ids = {name: len(np.load(into / f"{name}.npy", mmap_mode="r")) for name in ("training", "heldout")}
    parts = {part: sum(len(text.encode()) for text in texts) for part, texts in dealt.items()}
    recipe = {"bytes": parts, "tokens": ids, "packages": dict(given.most_common())}
    (into / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(recipe, indent=1))


if __name__ == "__main__":
    main()
