"""What the documentation site needs beyond MkDocs: pages outside of docs/, code, formulas, checks.

MkDocs calls the functions `on_...` by their names; mkdocs.yml names this file.
"""

from __future__ import annotations

import html
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import griffe
import typer
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
HOME = "README.md"
_LINK = re.compile(r"\]\(([^)#\s]+)(?=[)#])")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.+?)\\[)\]]</\1>', re.DOTALL)
_GENERATED = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_REGISTRIES = {
    "Samplers": ("synthesis.samplers", "SAMPLERS"),
    "Guidances": ("synthesis.guidance", "GUIDANCES"),
    "Similarities": ("synthesis.similarity", "SIMILARITIES"),
    "Features": ("features.base", "FEATURES"),
    "Upsamplers": ("features.upsampling", "UPSAMPLERS"),
    "Distances": ("distances.base", "DISTANCES"),
    "Segmenters": ("segmentation.base", "SEGMENTERS"),
    "Baselines": ("baselines.base", "BASELINES"),
}


# Pages from outside of docs/


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README.md as the first page, and every file of the repository that a page links to."""
    waiting = [HOME, *(_origin(file.src_uri) for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        origin = waiting.pop()
        if files.get_file_from_path(_place(origin)) is None:
            files.append(_outside(origin, config))
        if origin.endswith(".md"):
            found = {target for _, target in _links((ROOT / origin).read_text(), origin)} - seen
            seen |= found
            waiting += found
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository become links between pages; references are written."""
    origin = _origin(page.file.src_uri)
    here = os.path.dirname(_place(origin))
    for link, target in _links(markdown, origin):
        way = os.path.relpath(_place(target), here or ".")
        markdown = re.sub(rf"\]\({re.escape(link)}(?=[)#])", f"]({way}", markdown)
    return _GENERATED.sub(lambda found: "\n".join(_WRITERS[found[1]]()), markdown)


def _outside(origin: str, config: MkDocsConfig) -> File:
    if origin.endswith(".ipynb"):
        return File.generated(config, _place(origin), content=_notebook(ROOT / origin))
    return File.generated(config, _place(origin), abs_src_path=str(ROOT / origin))


def _notebook(file: Path) -> str:
    """A notebook as a page: its text, code, and what the code printed and drew."""
    parts = []
    for cell in json.loads(file.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif picture := output.get("data", {}).get("image/png"):
                parts.append(f"![](data:image/png;base64,{''.join(picture).strip()})")
    return "\n\n".join(parts)


def _links(markdown: str, origin: str) -> Iterator[tuple[str, str]]:
    """Each link of a page to a file of the repository, as written and as a path from the root."""
    for link in dict.fromkeys(_LINK.findall(markdown)):
        target = os.path.normpath(os.path.join(os.path.dirname(origin), link))
        if not urlsplit(link).scheme and not target.startswith("..") and (ROOT / target).is_file():
            yield link, target


def _origin(place: str) -> str:
    """The file of the repository that a page is made of."""
    if place == "index.md":
        return HOME
    return f"docs/{place}" if (ROOT / "docs" / place).exists() else place


def _place(origin: str) -> str:
    """Where a file of the repository is in the site."""
    if origin.endswith(".ipynb"):
        return f"{origin.removesuffix('.ipynb')}.md"
    return "index.md" if origin == HOME else origin.removeprefix("docs/")


# References from the code


def _commands() -> Iterator[str]:
    """A section for each command, from what `--help` is made of."""
    from anomaly_detector_ros.cli.main import app

    yield from _command(typer.main.get_command(app), "anomaly-detector")


def _command(command: Any, name: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        text, _, example = (command.help or "").partition("Example: ")
        given = [p.metavar or p.name for p in command.params if not p.opts[0].startswith("-")]
        yield f"\n## {name}\n\n{text.strip()}\n"
        yield f"```bash\n{example.strip() or ' '.join([name, *given])}\n```\n"
        yield "| option | default | meaning |\n| --- | --- | --- |"
        for each in command.params:
            spelling = ", ".join(f"`{o}`" for o in [*each.opts, *each.secondary_opts])
            if not each.opts[0].startswith("-"):
                spelling = f"`{each.metavar or each.name}`"
            yield f"| {spelling} | {_default(each)} | {_cell(each.help or '')} |"
        return
    for each, sub in inner.items():
        yield from _command(sub, f"{name} {each}")


def _default(option: Any) -> str:
    if option.required:
        return "must be given"
    value = getattr(option.default, "value", option.default)
    if value in (None, False) or callable(value):
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _profiles() -> Iterator[str]:
    """A section for each shipped profile: its parts with all of their settings."""
    from anomaly_detector_ros.profiles import load_profile, profile_names

    for name in profile_names():
        profile = load_profile(name)
        parts = profile.parts
        yield f"\n## Profile {name}\n\n{profile.title[0].upper()}{profile.title[1:]}.\n"
        yield "| part | is | settings |\n| --- | --- | --- |"
        sampler = parts.sampler.sampler
        rows = {"denoiser": parts.denoiser, "sampler": sampler, "features": parts.features}
        rows |= {"upsampler": parts.upsampler, "distance": parts.distance}
        for kind, part in {**rows, "segmenter": parts.segmenter}.items():
            settings = {field.name: getattr(part, field.name) for field in fields(part)}
            if kind == "sampler":
                settings |= {"num_edits": parts.sampler.num_edits, "seed": parts.sampler.seed}
            which = settings.pop("model", "") if kind == "denoiser" else _name_of(part)
            told = {key: value for key, value in settings.items() if value is not None}
            written = ", ".join(f"`{key}: {_plain(value)}`" for key, value in told.items())
            yield f"| {kind} | `{which}` | {written} |"
        yield f"| threshold | `{profile.threshold:g}` | |"


def _plain(value: Any) -> str:
    """A setting's value; of a part that is one, its name and settings."""
    if not is_dataclass(value):
        return str(value)
    inner = ", ".join(f"{f.name}: {getattr(value, f.name)}" for f in fields(value))
    return f"{_name_of(value)} ({inner})" if inner else _name_of(value)


def _parts() -> Iterator[str]:
    """A section for each kind of part: each part with its settings."""
    for kind in _REGISTRIES:
        registry = _registry(kind)
        yield f"\n## {kind}\n"
        for name in registry.names():
            part = registry.get(name)
            texts = _attributes(part)
            yield f"\n### `{name}`\n\n{(inspect.getdoc(part) or '').partition(chr(10) * 2)[0]}\n"
            settings = [field for field in fields(part) if field.init]
            if settings:
                yield "| setting | type | default | meaning |\n| --- | --- | --- | --- |"
            for field in settings:
                kind_of = re.sub(r"^Annotated\[([^,]+),.*\](.*)$", r"\1\2", str(field.type))
                row = (f"`{field.name}`", f"`{kind_of}`", _value(field), texts.get(field.name, ""))
                yield f"| {' | '.join(map(_cell, row))} |"


def _registry(kind: str) -> Any:
    module, name = _REGISTRIES[kind]
    return getattr(importlib.import_module(f"anomaly_detector_ros.{module}"), name)


def _value(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return f"`{field.default}`"
    if field.default_factory is MISSING:
        return "must be given"
    return f"`{_name_of(field.default_factory())}`"


def _name_of(part: object) -> str:
    names = (_registry(kind).name_of(part) for kind in _REGISTRIES)
    return next((name for name in names if name), repr(part))


def _attributes(part: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of its bases say of each field."""
    found: dict[str, str] = {}
    for each in reversed(part.__mro__):
        doc = each.__doc__ or ""
        for section in griffe.parse_google(griffe.Docstring(inspect.cleandoc(doc)), warnings=False):
            if section.kind is griffe.DocstringSectionKind.attributes:
                for attribute in section.value:
                    names = attribute.name.split(", ")
                    found.update(dict.fromkeys(names, attribute.description))
    return found


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


_WRITERS = {"commands": _commands, "profiles": _profiles, "parts": _parts}


# Formulas, which browsers draw by themselves


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """TeX becomes MathML: no script, nothing to fetch."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return str(convert(html.unescape(found[2]).strip(), display=display))

    return _FORMULA.sub(formula, content)


# The check of the built site


class _Addresses(HTMLParser):
    """The addresses that a page points to, those that it loads, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = {"", "__skip"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and given.get("href"):
            self.targets.append(given["href"] or "")
        elif tag in ("link", "script", "img", "source", "iframe"):
            self.loaded += [v for key in ("href", "src") if (v := given.get(key))]


def on_post_build(config: MkDocsConfig) -> None:
    """Every link and anchor leads somewhere, and no page loads anything from another host.

    Raises:
        PluginError: the addresses that lead nowhere.
    """
    site = Path(config.site_dir)
    pages = {file: _Addresses(file.read_text()) for file in sorted(site.rglob("*.html"))}
    wrong, checked = [], 0
    for file, found in pages.items():
        if file.name == "404.html":  # served for any address, so its own are absolute
            continue
        for address in [*found.targets, *found.loaded]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in found.loaded and parts.scheme != "data":
                    wrong.append(f"{file.relative_to(site)} loads {address}")
                continue
            checked += 1
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].places if target in pages else {unquote(parts.fragment)}
            if not target.exists() or unquote(parts.fragment) not in known:
                wrong.append(f"{file.relative_to(site)} leads to {address}")
    if wrong:
        raise PluginError("\n".join(["The site has addresses that lead nowhere:", *wrong]))
    print(f"{len(pages)} pages, {checked} links checked")
