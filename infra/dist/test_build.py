"""Tests of `make dist`: `python3 -m unittest discover -s infra/dist`. They build nothing: cargo and the tools are played."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile
from pathlib import Path

import build

# What `objdump -p -T` prints, shortened.
DUMP = """
Version References:
  required from libm.so.6:
    0x069691b4 0x00 09 GLIBC_2.34
    0x06969189 0x00 05 GLIBC_2.29
  required from libgcc_s.so.1:
    0x0b792650 0x00 02 GCC_99.0

DYNAMIC SYMBOL TABLE:
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.4)  __stack_chk_fail
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.34) pthread_create
0000000000000000  w   D  *UND*\t0000000000000000  Base        __gmon_start__
"""


def elf(machine, data=b"program"):
    return b"\x7fELF\x02\x01".ljust(18, b"\0") + machine.to_bytes(2, "little") + data


class Glibc(unittest.TestCase):
    def test_the_highest_version_is_found(self):
        self.assertEqual(build.check_glibc("p", DUMP), (2, 34))
        self.assertEqual(build.check_glibc("p", "no such lines"), (0,), "a static program needs none")
        self.assertEqual(build.check_glibc("p", DUMP.replace("2.34", "2.9").replace("2.29", "2.17")), (2, 17))

    def test_a_newer_one_is_refused_with_program_symbol_and_remedy(self):
        for dump in (
            DUMP + "0000 DF *UND*\t0000 (GLIBC_2.38) __isoc23_strtol\n",
            DUMP + "0000 DF *UND*\t0000  GLIBC_2.38  __isoc23_strtol\n",
        ):
            line = self.refusal(dump)
            for part in ("bootstrap", "GLIBC_2.38", "__isoc23_strtol", "2.34", "amazonlinux:2023", "cargo zigbuild"):
                self.assertIn(part, line)
            self.assertNotIn("\n", line)
        self.assertIn("GLIBC_2.100", self.refusal(DUMP + "  0x0 0x00 02 GLIBC_2.100\n"), "numbers, not text")
        self.assertIn("GLIBC_ABI_DT_RELR", self.refusal(DUMP + "  0x0fd0e42 0x00 03 GLIBC_ABI_DT_RELR\n"))

    def refusal(self, dump):
        with self.assertRaises(build.Refusal) as refused:
            build.check_glibc("bootstrap", dump)
        return str(refused.exception)


class Platform(unittest.TestCase):
    def test_machines_whose_programs_run_in_lambda(self):
        for triple in ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"):
            build.check_host(triple)

    def test_all_others_are_refused_in_one_line(self):
        for triple in (
            "aarch64-apple-darwin",
            "x86_64-apple-darwin",
            "x86_64-pc-windows-msvc",
            "x86_64-unknown-linux-musl",
            "aarch64-alpine-linux-musl",
            "armv7-unknown-linux-gnueabihf",
            "riscv64gc-unknown-linux-gnu",
            "i686-unknown-linux-gnu",
        ):
            with self.assertRaises(build.Refusal) as refused:
                build.check_host(triple)
            line = str(refused.exception)
            self.assertTrue(triple in line and "amazonlinux:2023" in line and "\n" not in line, line)

    def test_the_architecture_is_that_of_the_program(self):
        self.assertEqual(build.architecture("p", elf(62)), "x86_64")
        self.assertEqual(build.architecture("p", elf(183)), "arm64")
        for data in (b"", b"#!/bin/sh", elf(40), b"\xcf\xfa\xed\xfe".ljust(64, b"\0")):
            self.assertRaises(build.Refusal, build.architecture, "p", data)


class Zip(unittest.TestCase):
    def test_the_same_program_gives_the_same_zip(self):
        with tempfile.TemporaryDirectory() as directory:
            paths = [Path(directory) / name for name in ("one.zip", "two.zip")]
            for path in paths:
                build.pack(path, b"program" * 1000)
                time.sleep(2.1)  # The times in a zip are of two seconds.
            self.assertEqual(paths[0].read_bytes(), paths[1].read_bytes())
            with zipfile.ZipFile(paths[0]) as archive:
                (info,) = archive.infolist()
                self.assertEqual(archive.read("bootstrap"), b"program" * 1000)
            self.assertEqual((info.filename, info.date_time), ("bootstrap", (1980, 1, 1, 0, 0, 0)))
            self.assertEqual((info.external_attr >> 16, info.create_system), (0o100755, 3))
            self.assertEqual(sorted(os.listdir(directory)), ["one.zip", "two.zip"])


class Program(unittest.TestCase):
    """The script as `make dist` runs it, with played tools."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)
        (self.dir / "bin").mkdir()
        self.assets = self.dir / "assets"
        self.tool("rustc", "echo 'host: x86_64-unknown-linux-gnu'")
        self.tool("strip", 'cp "$4" "$3"')
        self.tool("objdump", f"cat {self.dir}/dump")
        (self.dir / "dump").write_text(DUMP)
        metadata = {"target_directory": "/t", "packages": [{"name": "ingest-worker", "version": "1.2.3"}]}
        (self.dir / "metadata").write_text(json.dumps(metadata))
        messages = []
        for program, kind, is_test in (
            ("bootstrap", "bin", False),
            ("control-api-lambda", "bin", False),
            ("bootstrap", "bin", True),
            ("it", "test", True),
        ):
            executable = self.dir / f"{program}-{is_test}"
            executable.write_bytes(elf(62, program.encode() * 100))
            message = {"target": {"name": program, "kind": [kind]}, "profile": {"test": is_test}}
            messages.append(json.dumps({"reason": "compiler-artifact", "executable": str(executable), **message}))
        (self.dir / "messages").write_text("\n".join(messages))
        answers = f"case $1 in metadata) cat {self.dir}/metadata;; *) cat {self.dir}/messages;; esac"
        self.tool("cargo", f'echo "$CARGO_ENCODED_RUSTFLAGS $*" >>{self.dir}/calls; {answers}')

    def tool(self, name, script):
        path = self.dir / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def dist(self, **settings):
        environment = {"PATH": f"{self.dir}/bin:/usr/bin:/bin", "HOME": "/home/somebody", **settings}
        command = [sys.executable, build.__file__, self.assets]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def refusal(self, **settings):
        result = self.dist(**settings)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual((result.stdout, len(result.stderr.splitlines())), ("", 1), result.stderr)
        self.assertFalse((self.assets / "manifest.json").exists(), "nobody takes half of it for the whole")
        return result.stderr

    def contents(self):
        return {path.name: path.read_bytes() for path in self.assets.iterdir()}

    def test_two_runs_give_the_same_bytes(self):
        self.assertEqual(self.dist().returncode, 0)
        first = self.contents()
        self.assertEqual(self.dist().returncode, 0)
        self.assertEqual(self.contents(), first)
        self.assertEqual(sorted(first), ["control-api.zip", "ingest-worker.zip", "manifest.json"])
        manifest = json.loads(first["manifest.json"])
        assets = manifest.pop("assets")
        expected = {"version": "1.2.3", "architecture": "x86_64", "glibc": "2.34", "profile": "release"}
        self.assertEqual(manifest, expected)
        for name, facts in assets.items():
            self.assertEqual(facts["size"], len(first[name]))
            self.assertEqual(len(facts["sha256"]), 64)

    def test_a_release_names_no_path_of_the_builder_and_a_debug_build_is_the_tests_own(self):
        self.assertEqual(self.dist(RUSTFLAGS="-C opt-level=3").returncode, 0)
        call = (self.dir / "calls").read_text().splitlines()[-1]
        self.assertTrue(call.startswith("-C\x1fopt-level=3\x1f--remap-path-prefix=/home/somebody=/home\x1f"), call)
        self.assertIn("--profile release", call)
        self.assertIn("--package ingest-worker --package control-api", call)
        result = self.dist(DIST_PROFILE="dev", DIST_BUILD="cargo build --workspace --all-targets")
        self.assertEqual(result.returncode, 0, result.stderr)
        call = (self.dir / "calls").read_text().splitlines()[-1]
        self.assertTrue(call.startswith(" build --workspace --all-targets --locked --profile dev"), call)
        self.assertNotIn("--package", call)

    def test_what_is_in_the_way_is_one_line(self):
        self.tool("rustc", "echo 'host: x86_64-unknown-linux-musl'")
        self.assertIn("x86_64-unknown-linux-musl", self.refusal())
        self.tool("rustc", "echo 'host: x86_64-unknown-linux-gnu'")
        self.assertEqual(self.dist().returncode, 0)
        (self.dir / "dump").write_text(DUMP + "0000 DF *UND* 0000 (GLIBC_2.38) __isoc23_strtol\n")
        self.assertIn("bootstrap needs GLIBC_2.38", self.refusal())
        self.tool("cargo", f"case $1 in metadata) cat {self.dir}/metadata;; *) exit 101;; esac")
        self.assertIn("cargo build failed", self.refusal())
        self.tool("cargo", f"case $1 in metadata) cat {self.dir}/metadata;; esac")
        self.assertIn("no bootstrap and no control-api-lambda", self.refusal())


if __name__ == "__main__":
    unittest.main()
