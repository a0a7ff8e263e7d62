"""`everlearn adapters`: every line, a version's lineage, import, export, rebuild."""

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.markup import escape
from rich.tree import Tree

from adapters.artifact import CONFIG, MANIFEST, WEIGHTS
from server.cli import adapters
from server.cli.client import Api, connect
from server.cli.console import Failure, out
from server.cli.documents import finish
from server.cli.progress import follow
from server.core.settings import Settings
from server.embedded.up import prepare_model

app = typer.Typer(
    help="Adapter versions: list, show, import, export, rebuild.", add_completion=False
)

Line = Annotated[str, typer.Argument(help="The adapter line.")]
Version = Annotated[str, typer.Argument(help="v2 or 2.")]
AsJson = Annotated[bool, typer.Option("--json", help="As the API says it.")]

EXAM = "exam.json"
_EXPORTED = (CONFIG, WEIGHTS, MANIFEST, EXAM)
# What lies beside an adapter and says nothing about it: it is left where it is.
_IGNORED = (
    "README.md",
    ".gitattributes",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)
_MERGE = "adapters.merge"


@app.callback(invoke_without_command=True)
def every_line(context: typer.Context) -> None:
    """The versions of each line and who serves; `show NAME` says more."""
    if context.invoked_subcommand is None:
        adapters.show_all()


@app.command()
def show(
    name: Line,
    version: Annotated[str | None, typer.Argument(help="One version: v2 or 2.")] = None,
    as_json: AsJson = False,
) -> None:
    """The lineage of a line as a tree, and every move of its aliases; of one version also where it comes from and how it did."""
    with connect() as api:
        path = f"/api/v1/adapters/{name}"
        found = api.get(path) if version is None else api.get(f"{path}/versions/{version}")
    if as_json:
        out.print_json(json.dumps(found))
    elif version is None:
        out.print(_line_tree(found))
        adapters.print_moves(found["events"])
    else:
        _print_version(found)


@app.command("import")
def import_adapter(
    name: Line,
    folder: Annotated[Path, typer.Argument(help="A PEFT folder: config and safetensors.")],
    source: Annotated[str, typer.Option(help="Where it comes from; else the folder's name.")] = "",
    reason: adapters.Reason = "",
) -> None:
    """Bring a foreign LoRA adapter into a line, as a version that has proven nothing yet."""
    _check_folder(folder)
    fields = {"source": source or folder.resolve().name, "reason": reason}
    with connect() as api, ExitStack() as open_files:
        files: dict[str, tuple[str, BinaryIO]] = {
            field: (file, open_files.enter_context((folder / file).open("rb")))
            for field, file in (("config", CONFIG), ("weights", WEIGHTS))
        }
        version = api.post_files(f"/api/v1/adapters/{name}/versions", files, fields)
    out.print(f"[bold]{version['name']}[/] is in, {version['status']}: it serves nobody yet.")


@app.command()
def export(
    name: Line,
    version: Version,
    destination: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    merged: Annotated[
        bool,
        typer.Option(
            "--merged", help="A whole model instead; only where the base model and PyTorch are."
        ),
    ] = False,
) -> None:
    """Write a version as a plain PEFT folder, or merged into its base model."""
    if destination.exists():
        raise Failure(f"{destination} exists, and nothing is overwritten; name a new folder.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".export-") as scratch:
        folder = Path(scratch) / "adapter"
        folder.mkdir()
        with connect() as api:
            _download(api, f"/api/v1/adapters/{name}/versions/{version}/export", folder)
        if merged:
            folder = _merge(folder, Path(scratch) / "merged")
        folder.rename(destination)
    out.print(f"{name}@{version} is in {destination}")


@app.command()
def rebuild(
    name: Line,
    version: Version,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it, and say what differs.")] = False,
) -> None:
    """Train a version again from its manifest and compare; nothing else comes of it."""
    with connect() as api:
        run = api.post(f"/api/v1/adapters/{name}/versions/{version}/rebuild")
        out.print(f"run {run['id']} trains {run['rebuilds']} again")
        if wait:
            finish(follow(api, run["id"], out))
        else:
            out.print(f"Follow it: `everlearn runs {run['id']} --follow`.")


def _line_tree(line: dict[str, Any]) -> Tree:
    """Base model, its versions, theirs."""
    aliases: dict[str, list[str]] = {}
    for alias, version in line["aliases"].items():
        aliases.setdefault(version, []).append(alias)
    base = f"{line['name']}@base"
    root = Tree(_label(base, aliases.get(base, []), [escape(line["base_model"])]))
    branches = {base: root}
    for version in sorted(line["versions"], key=lambda row: row["number"]):  # parents come first
        facts = [
            version["status"],
            version["run_id"] or version["origin"],
            f"{len(version['documents'])} documents",
            (version["exam"] or {}).get("verdict", "no exam"),
        ]
        label = _label(version["name"], aliases.get(version["name"], []), facts)
        branches[version["name"]] = branches[version["parent"]].add(label)
    return root


def _label(name: str, aliases: list[str], facts: list[str]) -> str:
    marks = "".join(f" [green]{alias}[/]" for alias in aliases)
    return f"[bold]{name}[/]{marks}  {', '.join(facts)}"


def _print_version(version: dict[str, Any]) -> None:
    steps = list(reversed(version["lineage"]))
    root = Tree(_label(steps[0]["name"], [], []))
    branch = root
    for step in steps[1:]:
        known = [step["status"], step["run_id"] or step["origin"], step["verdict"]]
        branch = branch.add(_label(step["name"], [], [fact for fact in known if fact]))
    out.print(root)
    out.print(f"  status     {version['status']}{_marks(version['aliases'])}")
    if version["retire_reason"]:
        out.print(f"  retired    {escape(version['retire_reason'])}")
    if version["generation"]:
        out.print(f"  trained    on from {version['parent']}, generation {version['generation']}")
    out.print(f"  digest     {version['digest']}")
    out.print(f"  documents  {', '.join(version['documents']) or 'none'}")
    manifest = version["manifest"] or {}
    for key in ("source", "method", "seed", "code_version", "base_hash"):
        if manifest.get(key) not in (None, ""):
            out.print(f"  {key:<10} {escape(str(manifest[key]))}")
    for reason in (version["exam"] or {}).get("reasons", []):
        out.print(f"  · {reason}", markup=False)


def _marks(aliases: list[str]) -> str:
    return "".join(f", [green]{alias}[/]" for alias in aliases)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise Failure(f"{folder} is not a folder; name the one that PEFT's save_pretrained wrote.")
    names = {path.name for path in folder.iterdir()}
    if missing := sorted({CONFIG, WEIGHTS} - names):
        raise Failure(
            f"{folder} has no {missing[0]}; save it with PEFT's "
            "save_pretrained(safe_serialization=True)."
        )
    extra = sorted(
        name
        for name in names - {CONFIG, WEIGHTS}
        if not any(fnmatch(name, ignored) for ignored in _IGNORED)
    )
    if extra:
        raise Failure(
            f"{folder} also holds {', '.join(extra)}, and an adapter is two files; move it away "
            "if the adapter works without it."
        )


def _download(api: Api, path: str, folder: Path) -> None:
    """The files of an export, and no others, whatever the archive calls its folder."""
    packed = folder.with_suffix(".zip")
    with api.stream("GET", path) as response, packed.open("wb") as file:
        for piece in response.iter_bytes():
            file.write(piece)
    try:
        with zipfile.ZipFile(packed) as archive:
            for entry in archive.infolist():
                name = entry.filename.rpartition("/")[2]
                if name in _EXPORTED:
                    with archive.open(entry) as content, (folder / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except zipfile.BadZipFile as error:
        raise Failure(f"The archive came damaged ({error}); try again.") from None
    packed.unlink()


def _merge(folder: Path, destination: Path) -> Path:
    """A whole model of the downloaded adapter, made by a process that may load PyTorch."""
    settings = Settings()
    manifest = json.loads((folder / MANIFEST).read_text())
    base = prepare_model(settings.model.source, settings.home_path)
    if base.hash != manifest["base_hash"]:
        raise Failure(
            f"{manifest['adapter']}@v{manifest['version']} belongs to {manifest['base_model']} "
            f"({manifest['base_hash'][:12]}), and this machine has {settings.model.source} "
            f"({base.hash[:12]}). Set EVERLEARN_MODEL__SOURCE."
        )
    job = folder.with_suffix(".json")
    fields = {"base_model": base.path, "adapter": folder, "output": destination}
    job.write_text(json.dumps({key: str(path) for key, path in fields.items()}))
    done = subprocess.run(
        [sys.executable, "-m", _MERGE, str(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise Failure(f"Merging ended with status {done.returncode}:\n{tail}")
    for name in (MANIFEST, EXAM):
        shutil.copyfile(folder / name, destination / name)
    return destination
