"""A hook of mkdocs: Markdown from elsewhere in the repository, formulas as MathML."""

import logging
import pathlib
import re
from typing import Any

from latex2mathml import converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

log = logging.getLogger(f"mkdocs.hooks.{__name__}")  # its warnings are errors
# Pages of the site whose source stays where its readers look for it.
ELSEWHERE = {
    "experiments.md": "experiments/README.md",
    "ablation.md": "experiments/ablation/README.md",
    "benchmarks.md": "experiments/benchmarks/RESULTS.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A `math` fence, and `#!math` in a line, become MathML: it needs no script."""
    block = {"name": "math", "class": "math", "format": format_block}
    line = {"name": "math", "class": "math", "format": format_line}
    options = config.mdx_configs
    options.setdefault("pymdownx.superfences", {})["custom_fences"] = [block]
    options.setdefault("pymdownx.inlinehilite", {})["custom_inline"] = [line]
    return config


def format_block(source: str, *_: Any, **__: Any) -> str:
    """A formula that stands by itself and scrolls where the screen is narrow."""
    return f'<div class="formula">{_mathml(source, "block")}</div>'


def format_line(source: str, *_: Any, **__: Any) -> str:
    """A formula within a line."""
    return _mathml(source, "inline")


def _mathml(source: str, display: str) -> str:
    formula = source.replace(r"\arg", r"\mathrm{arg}").replace(r"\Big", "")
    made = converter.convert(formula, display=display)
    if "\\" in made:  # a command that the converter does not know, shown as it is
        log.warning(f"Got the formula {source!r}, which cannot be shown; change it.")
    return made


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages from elsewhere, and the pictures beside them."""
    root = pathlib.Path(config.config_file_path).parent
    for page, source in ELSEWHERE.items():
        text = relink((root / source).read_text(), source)
        files.append(File.generated(config, page, content=text))
        for picture in (root / source).parent.glob("*.png"):
            where = str(picture.relative_to(root))
            files.append(File.generated(config, where, abs_src_path=str(picture)))
    return files


def relink(text: str, source: str) -> str:
    """Lets links of a file of the repository point at pages of the site."""
    folder = pathlib.PurePosixPath(source).parent
    pages = {where: page for page, where in ELSEWHERE.items()}

    def moved(match: re.Match[str]) -> str:
        path = str(folder / match[1])
        path = re.sub(r"[^/]+/\.\./", "", path)
        return f"]({pages.get(path, path.removeprefix('docs/'))}"

    return re.sub(r"\]\((?!\w+:|#)([^)#]+)", moved, text)
