"""Tests of the image's files: `python3 -m unittest discover -s infra/image`. verify.sh tries the image itself."""

import fnmatch
import re
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "infra/image/Dockerfile").read_text()


class Dockerfile(unittest.TestCase):
    def test_rust_is_the_version_of_the_toolchain_file(self):
        toolchain = re.search(r'^channel = "(.+)"$', (ROOT / "rust-toolchain.toml").read_text(), re.M).group(1)
        images = re.findall(r"^FROM rust:([0-9.]+)-", DOCKERFILE, re.M)
        self.assertEqual(images, [toolchain])

    def test_the_image_is_what_verify_tries(self):
        last = DOCKERFILE.split("\nFROM ")[-1]
        self.assertTrue(last.startswith("scratch\n"), "verify.sh begins with an empty directory")
        copied = re.findall(r"^COPY .* (\S+)$", last, re.M)
        self.assertEqual(copied, ["/etc/ssl/certs/ca-certificates.crt", "/LICENSE", "/ingest-worker"])
        verify = (ROOT / "infra/image/verify.sh").read_text()
        for path in copied:
            self.assertIn(Path(path).name, verify)
        user = re.search(r"^USER (\d+:\d+)$", last, re.M).group(1)
        self.assertIn(f"--userspec={user}", verify)
        for text in (DOCKERFILE, verify):
            self.assertRegex(text, r"(?m)^(RUN )?infra/image/build\.sh ")
        for line in ('ENTRYPOINT ["/ingest-worker"]', "STOPSIGNAL SIGTERM"):
            self.assertIn(line, last)

    def test_the_build_has_all_members_of_the_workspace(self):
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        kept = [line[1:] for line in ignored if line.startswith("!")]
        members = re.search(r"^members = \[(.+)\]$", (ROOT / "Cargo.toml").read_text(), re.M).group(1)
        needed = [member.split("/")[0] for member in re.findall(r'"(.+?)"', members)]
        needed += ["Cargo.toml", "Cargo.lock", "LICENSE", "infra/image"]
        for path in needed:
            self.assertTrue(any(fnmatch.fnmatch(path, pattern) for pattern in kept), f"{path} is not sent")
        self.assertNotIn("rust-toolchain.toml", kept, "rustup would fetch its components")


if __name__ == "__main__":
    unittest.main()
