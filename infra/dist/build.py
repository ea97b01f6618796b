#!/usr/bin/env python3
"""Builds the programs of the Lambda functions, and packs them for the npm package: `make dist`.

Writes infra/assets/{ingest-worker,control-api}.zip, each with one file, `bootstrap`, and manifest.json, which says what
they are. The same programs give the same zips, byte for byte. Needs Rust, binutils and Python 3.9, nothing else.

    DIST_PROFILE=dev      pack a debug build: the same steps, sooner
    DIST_BUILD=COMMAND    build with this instead of `cargo build`, such as `cargo zigbuild --target
                          x86_64-unknown-linux-gnu.2.34`, or `cargo build --workspace --all-targets`, which reuses what
                          tests have built
"""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "infra" / "assets"

# Asset, package, and the package's program for Lambda.
PROGRAMS = [
    ("ingest-worker.zip", "ingest-worker", "bootstrap"),
    ("control-api.zip", "control-api", "control-api-lambda"),
]

# Source: https://docs.aws.amazon.com/linux/al2023/ug/core-glibc.html; provided.al2023 is built from it.
LAMBDA_GLIBC = (2, 34)
# A linker feature, not a symbol: glibc knows it from this version on.
RELR, RELR_GLIBC = "GLIBC_ABI_DT_RELR", (2, 36)

# By the ELF header's e_machine; the names are those of Lambda.
ARCHITECTURES = {62: "x86_64", 183: "arm64"}
EPOCH = (1980, 1, 1, 0, 0, 0)


class Refusal(Exception):
    """One line that says what is in the way."""


def main(assets):
    check_host(host_triple())
    profile = os.environ.get("DIST_PROFILE") or "release"
    manifest = assets / "manifest.json"
    # Without it nobody takes the zips for a set while they are being replaced.
    manifest.unlink(missing_ok=True)
    metadata = json.loads(output("cargo", "metadata", "--no-deps", "--format-version", "1", "--locked"))
    built = build(profile, metadata)
    assets.mkdir(parents=True, exist_ok=True)
    found = {"architecture": set(), "glibc": []}
    described = {}
    with tempfile.TemporaryDirectory() as scratch:
        for asset, _, program in PROGRAMS:
            stripped = Path(scratch) / program
            run("strip", "--strip-all", "-o", stripped, built[program])
            data = stripped.read_bytes()
            found["architecture"].add(architecture(program, data))
            found["glibc"].append(check_glibc(program, output("objdump", "-p", "-T", stripped)))
            pack(assets / asset, data)
            packed = (assets / asset).read_bytes()
            described[asset] = {"sha256": hashlib.sha256(packed).hexdigest(), "size": len(packed)}
    if len(found["architecture"]) > 1:
        raise Refusal(f"the programs are for different machines: {sorted(found['architecture'])}")
    contents = {
        "version": next(p["version"] for p in metadata["packages"] if p["name"] == "ingest-worker"),
        "architecture": found["architecture"].pop(),
        "glibc": ".".join(map(str, max(found["glibc"]))),
        "profile": profile,
        "assets": described,
    }
    partial = manifest.with_suffix(".partial")
    partial.write_text(json.dumps(contents, indent=2) + "\n")
    partial.replace(manifest)
    for asset, facts in described.items():
        print(f"{assets / asset}: {facts['size'] / 1e6:.1f} MB")
    print(f"{contents['architecture']}, needs glibc {contents['glibc']}, {profile}")


def check_host(triple):
    """Refuses machines whose programs would not run in Lambda."""
    machine, _, system = triple.partition("-")
    allowed = "build on x86_64 or aarch64 Linux with glibc, such as a container of amazonlinux:2023"
    if "linux" not in system:
        raise Refusal(f"Lambda runs Linux programs, and this machine's are for {triple}: {allowed}")
    if not system.endswith("-gnu"):
        raise Refusal(f"Lambda's system has glibc, and Rust builds for {triple} here: {allowed}")
    if machine not in ("x86_64", "aarch64"):
        raise Refusal(f"Lambda has x86_64 and arm64 machines, and this one is {triple}: {allowed}")


def host_triple():
    facts = dict(line.split(": ", 1) for line in output("rustc", "-vV").splitlines() if ": " in line)
    return facts["host"]


def build(profile, metadata):
    """Answers the programs' files by name."""
    command = shlex.split(os.environ.get("DIST_BUILD") or "cargo build")
    if "--workspace" not in command:
        command += [argument for _, package, _ in PROGRAMS for argument in ("--package", package)]
    command += ["--locked", "--profile", profile, "--message-format", "json-render-diagnostics"]
    command += ["--features", ",".join(f"{package}/lambda" for _, package, _ in PROGRAMS)]
    command += [argument for _, _, program in PROGRAMS for argument in ("--bin", program)]
    environment = dict(os.environ)
    if profile == "release":
        environment["CARGO_ENCODED_RUSTFLAGS"] = "\x1f".join(flags(environment, metadata["target_directory"]))
    built = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if built.returncode:
        raise Refusal(f"{shlex.join(command[:2])} failed")
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    programs = {
        message["target"]["name"]: Path(message["executable"])
        for message in messages
        if message.get("executable") and message["target"]["kind"] == ["bin"] and not message["profile"]["test"]
    }
    missing = [program for _, _, program in PROGRAMS if program not in programs]
    if missing:
        raise Refusal(f"{shlex.join(command[:2])} made no {' and no '.join(missing)}")
    return programs


def flags(environment, target):
    """The compiler's flags: those of the caller, and none of this machine's paths in messages of panics. cargo keeps
    what it built with other flags beside this, so nothing is built anew that does not differ."""
    encoded = environment.get("CARGO_ENCODED_RUSTFLAGS")
    given = encoded.split("\x1f") if encoded else environment.get("RUSTFLAGS", "").split()
    cargo = environment.get("CARGO_HOME") or str(Path.home() / ".cargo")
    # Of several that match the last counts.
    paths = [(str(Path.home()), "/home"), (cargo, "/cargo"), (str(ROOT), "/source"), (target, "/target")]
    return given + [f"--remap-path-prefix={path}={name}" for path, name in paths]


def architecture(program, data):
    """The machine of an ELF file, little-endian and 64 bits wide, as Lambda names it."""
    machine = int.from_bytes(data[18:20], "little")
    if data[:6] != b"\x7fELF\x02\x01" or machine not in ARCHITECTURES:
        raise Refusal(f"{program} is not a program for x86_64 or arm64 Linux")
    return ARCHITECTURES[machine]


def check_glibc(program, dump):
    """The highest version of glibc that a program needs, by what `objdump -p -T` prints of it."""
    needed = {}
    for line in dump.splitlines():
        for version in re.findall(r"\bGLIBC_([0-9.]+)\b", line):
            # Lines of the symbol table end with the symbol; those of the version references with the version.
            is_symbol = "*UND*" in line
            needed.setdefault(numbers(version), set()).update([line.split()[-1]] if is_symbol else [])
        if RELR in line:
            needed.setdefault(RELR_GLIBC, set()).add(RELR)
    highest = max(needed, default=(0,))
    if highest > LAMBDA_GLIBC:
        symbols = ", ".join(sorted(needed[highest])[:3]) or "no symbol"
        raise Refusal(
            f"{program} needs GLIBC_{'.'.join(map(str, highest))} ({symbols}), and Lambda's Amazon Linux 2023 has "
            f"{'.'.join(map(str, LAMBDA_GLIBC))}: build in a container of amazonlinux:2023, or with "
            "DIST_BUILD='cargo zigbuild --target x86_64-unknown-linux-gnu.2.34'"
        )
    return highest


def numbers(version):
    return tuple(int(number) for number in version.split("."))


def pack(path, data):
    """A zip with one file, the same for the same data whenever and by whomever it is made."""
    info = zipfile.ZipInfo("bootstrap", EPOCH)
    info.create_system = 3  # Unix, whose permissions are the upper half of the attributes.
    info.external_attr = 0o100755 << 16
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(info, data, zipfile.ZIP_DEFLATED, 9)
    partial.replace(path)


def run(*command):
    output(*command)


def output(*command):
    try:
        return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    except FileNotFoundError as error:
        raise Refusal(f"{command[0]} is not installed; needed are Rust and binutils") from error
    except subprocess.CalledProcessError as error:
        raise Refusal(f"{command[0]} failed") from error


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ASSETS)
    except Refusal as refusal:
        sys.exit(f"dist: {refusal}")
