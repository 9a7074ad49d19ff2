#!/usr/bin/env python3
"""Every verb of docs/api.md is in C, Python, Rust and on the command line, and no other is.

Names, arguments in order, and the errors that each lists are compared; verbs that are not built are where
they must answer UnsupportedOperation, and nowhere else. Then each surface is mutilated: that must be noticed.

Closing line: "N passed, N failed".
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# Which command offers a verb. None: every command does it as a part of its work.
COMMANDS: dict[str, list[str] | None] = {
    "connectStorageRepository": None,
    "disconnectStorageRepository": None,
    "formatStorageRepository": ["repo format"],
    "listStorageRepositories": ["repo list"],
    "getStorageRepositoryInfo": ["repo info"],
    "createVirtualDisk": ["image create"],
    "createSnapshot": ["image snapshot"],
    "copyImage": ["image copy"],
    "importImage": ["image import"],
    "removeImage": ["image remove"],
    "getImageStatus": ["image status"],
    "getImageInfo": ["image info"],
    "listImages": ["image list"],
    "setImageUserData": ["image set-userdata"],
    "openImage": ["image read", "image write", "image extents"],
    "prepareImage": ["image prepare"],
    "teardownImage": ["image teardown"],
    "waitImage": ["image wait"],
    "waitTask": None,
    "listTasks": None,
    "checkStorageRepository": ["repo check"],
    "fixStorageRepository": ["repo fix"],
    "setImageStrategy": ["image set-strategy"],
    "resizeVirtualDisk": ["image resize"],
    "stopImageTask": ["image stop"],
    "stopTask": None,
    "diffImages": ["image diff"],
    "exportImage": ["image export"],
    "measureImage": ["image measure"],
}
FILE = ("info", "check", "map", "measure", "convert", "compare", "hash", "create", "commit", "rebase")
COMMANDS_ONLY = {"graph", *(f"file {command}" for command in FILE)}
RUST_ONLY = {"new", "close", "connect_driver", "run_tasks", "graph", "list_image_infos"}
C_ONLY = {
    *("open", "close", "free", "string_free", "version", "version_number"),
    *("error_code", "error_kind", "error_message", "error_details", "error_free"),
    *("image_read", "image_write", "image_write_zeroes", "image_discard", "image_flush"),
    *("image_size", "image_extents", "image_close", "image_free"),
    *("difference_next", "difference_free"),
}


@dataclass(frozen=True)
class Verb:
    """A verb as one surface has it."""

    arguments: tuple[str, ...]
    errors: frozenset[str] | None = None


Verbs = dict[str, Verb]


@dataclass
class Surfaces:
    """What there is."""

    built: Verbs
    unbuilt: Verbs
    c: Verbs
    store: Verbs
    store_unbuilt: set[str]
    module: set[str]
    legacy: set[str]
    rust: set[str]
    commands: set[str]
    problems: list[str] = field(default_factory=list)


def snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def errors_in(text: str) -> frozenset[str]:
    """The kinds that follow `Errors:`."""
    match = re.search(r"Errors:\s(.*?)\.(?:\s|$)", re.sub(r"\n \* ?", "\n", text), re.DOTALL)
    return frozenset(re.findall(r"\b[A-Z][a-z]+[A-Za-z]*\b", match[1])) if match else frozenset()


def argument_names(text: str) -> tuple[str, ...]:
    return tuple(part.split("=")[0].strip() for part in text.split(","))


def page(text: str) -> tuple[Verbs, Verbs]:
    """The verbs of docs/api.md: built, not built."""
    built = {
        name: Verb(argument_names(arguments), errors_in(body))
        for name, arguments, body in re.findall(
            r"^### `(\w+)\(([^\n]*)\)`\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL
        )
    }
    section = text.split("\n## Not built yet\n", 1)[1].split("\n## ", 1)[0]
    unbuilt = {
        name: Verb(argument_names(arguments))
        for name, arguments in re.findall(r"^- `(\w+)\((.*)\)`$", section, re.MULTILINE)
    }
    return built, unbuilt


def header(text: str) -> Verbs:
    """The functions of vdsmstore.h without their prefix; without the store and the error."""
    found = {}
    for comment, name, parameters in re.findall(
        r"/\*\*((?:(?!\*/).)*)\*/\s*[\w \*]*?\bvdsmstore_(\w+)\(([^)]*)\);", text, re.DOTALL
    ):
        names = [re.findall(r"\w+", parameter)[-1] for parameter in parameters.split(",")]
        if names[0] == "store":
            names = names[1:]
        if names[-1:] == ["error"]:
            names = names[:-1]
        found[name] = Verb(tuple(names), errors_in(comment))
    return found


def python_store(text: str) -> tuple[Verbs, set[str]]:
    """The methods of Store: built, not built."""
    store = next(
        node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Store"
    )
    built: Verbs = {}
    unbuilt = set()
    for node in store.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != "close":
            built[node.name] = Verb(tuple(argument.arg for argument in node.args.args[1:]))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            unbuilt |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return built, unbuilt


def rust(text: str) -> set[str]:
    return set(re.findall(r"^    pub fn (\w+)", text, re.MULTILINE))


def command_line() -> set[str]:
    """The commands that --help lists."""
    given = os.environ.get("VDSMSTORE")
    if given is None:
        subprocess.run(["cargo", "build", "-q", "-p", "vdsmstore-cli"], cwd=ROOT, check=True)
        given = str(Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/vdsmstore")

    def listed(*command: str) -> list[str]:
        out = subprocess.run([given, *command, "--help"], check=True, capture_output=True, text=True).stdout
        section = out.split("\nCommands:\n", 1)
        if len(section) == 1:
            return []
        names = re.findall(r"^  ([\w-]+)", section[1].split("\n\n", 1)[0], re.MULTILINE)
        return [name for name in names if name != "help"]

    found = set()
    for name in listed():
        found |= {f"{name} {inner}" for inner in listed(name)} or {name}
    return found


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def surfaces() -> Surfaces:
    built, unbuilt = page(read("docs/api.md"))
    store, store_unbuilt = python_store(read("python/vdsmstore/_store.py"))
    sources = sorted((ROOT / "crates/core/src/store").glob("*.rs"))
    return Surfaces(
        built=built,
        unbuilt=unbuilt,
        c=header(read("include/vdsmstore.h")),
        store=store,
        store_unbuilt=store_unbuilt,
        module=set(
            re.findall(
                r"^(\w+) = _on_default\(Store\.\1\)$", read("python/vdsmstore/__init__.py"), re.MULTILINE
            )
        ),
        legacy=set(re.findall(r'^(\w+) = _legacy\("\1"', read("python/vdsmstore/legacy.py"), re.MULTILINE)),
        rust=set().union(*(rust(path.read_text(encoding="utf-8")) for path in sources)),
        commands=command_line(),
    )


def same(what: str, found: set[str], wanted: set[str]) -> list[str]:
    return [f"{what}: {name} is missing" for name in sorted(wanted - found)] + [
        f"{what}: {name} is in docs/api.md no built verb" for name in sorted(found - wanted)
    ]


def compare(given: Surfaces) -> list[list[str]]:
    """What is wrong, check by check."""
    built, unbuilt = set(given.built), set(given.unbuilt)
    every = {**given.built, **given.unbuilt}
    mapped = {command for verb in built for command in COMMANDS.get(verb) or []}
    in_c = {snake(verb): verb for verb in every}
    arguments_of_c = []
    errors_of_c = []
    for name, verb in in_c.items():
        if name not in given.c:
            continue
        wanted = tuple(snake(argument) for argument in every[verb].arguments)
        found = given.c[name].arguments
        if found[: len(wanted)] != wanted or len(found) > len(wanted) + 1:
            arguments_of_c.append(f"C: {name} takes {found}, not {wanted} and a result")
        if verb in built and given.c[name].errors != given.built[verb].errors:
            errors_of_c.append(f"C: {name} lists other errors than docs/api.md")
    return [
        [
            f"docs/api.md: {name} has no options last"
            for name in every
            if every[name].arguments[-1] != "options"
        ],
        [f"{name} is built and not built" for name in built & unbuilt],
        same("command map of this test", set(COMMANDS), built),
        same("C", set(given.c), in_c.keys() | C_ONLY),
        arguments_of_c,
        errors_of_c,
        same("Python Store", set(given.store), built),
        same("Python Store, not built", given.store_unbuilt, unbuilt),
        same("Python module", given.module, built | unbuilt),
        same("vdsmstore.legacy", given.legacy, built | unbuilt),
        [
            f"Python: {name} takes {given.store[name].arguments}, not {given.built[name].arguments}"
            for name in sorted(built & set(given.store))
            if given.store[name].arguments != given.built[name].arguments
        ],
        same("Rust", given.rust - RUST_ONLY, {snake(verb) for verb in built}),
        same("command line", given.commands - COMMANDS_ONLY, mapped),
    ]


def flat(problems: list[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(problems))


def mutilated(given: Surfaces) -> dict[str, Surfaces]:
    """Surfaces that each have one thing wrong."""

    def without(verbs: Verbs, name: str) -> Verbs:
        return {key: value for key, value in verbs.items() if key != name}

    surplus = Verb(("options",))
    shorter = replace(given.store["copyImage"], arguments=given.store["copyImage"].arguments[:-1])
    fewer = replace(given.c["copy_image"], errors=frozenset({"Timeout"}))
    return {
        "a verb removed from docs/api.md": replace(given, built=without(given.built, "copyImage")),
        "a verb added to docs/api.md": replace(given, built={**given.built, "growImage": surplus}),
        "a verb that is not built removed from docs/api.md": replace(
            given, unbuilt=without(given.unbuilt, "extendImage")
        ),
        "a verb removed from C": replace(given, c=without(given.c, "copy_image")),
        "a verb added to C": replace(given, c={**given.c, "grow_image": surplus}),
        "other errors in C": replace(given, c={**given.c, "copy_image": fewer}),
        "other arguments in C": replace(given, c={**given.c, "copy_image": surplus}),
        "a verb removed from Store": replace(given, store=without(given.store, "copyImage")),
        "other arguments in Store": replace(given, store={**given.store, "copyImage": shorter}),
        "a verb removed from those not built": replace(
            given, store_unbuilt=given.store_unbuilt - {"extendImage"}
        ),
        "a verb removed from the module": replace(given, module=given.module - {"copyImage"}),
        "a verb removed from legacy": replace(given, legacy=given.legacy - {"copyImage"}),
        "a verb removed from Rust": replace(given, rust=given.rust - {"copy_image"}),
        "a verb added to Rust": replace(given, rust=given.rust | {"grow_image"}),
        "a command removed": replace(given, commands=given.commands - {"image copy"}),
        "a command added": replace(given, commands=given.commands | {"image grow"}),
    }


def main() -> int:
    given = surfaces()
    passed = failed = 0
    for problems in compare(given):
        passed, failed = (passed, failed + 1) if problems else (passed + 1, failed)
        for problem in problems:
            print("FAILED ", problem)
    before = flat(compare(given))
    for what, wrong in mutilated(given).items():
        if set(flat(compare(wrong))) - set(before):
            passed += 1
        else:
            failed += 1
            print("FAILED  not noticed:", what)
    print(f"{len(given.built)} verbs, {len(given.unbuilt)} not built")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
