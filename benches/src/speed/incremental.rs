//! Copies of a disk of 64 GiB that differ little from what is there already.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use vdsmstore_mounts::{Mounted, Throttle, Transfer};

use super::{Bench, MIB, Row, Side};
use crate::numbers::is_smoke;
use crate::scene::{Result, fill_with_noise, noise, text, tool};

/// Virtual size of the disk; its data is `real`.
const SIZE: u64 = 64 << 30;

/// Of a base that is far away, in bytes a second: a network of 1 Gbit/s.
const RATE: u64 = 120_000_000;

/// Pieces of 1 MiB that changed.
fn changes() -> u64 {
    if is_smoke() { 10 } else { 100 }
}

impl Bench {
    fn command(&self, arguments: &str, input: &[u8]) -> Result<String> {
        let repos = self.repos();
        let mut child = Command::new(&self.ours)
            .args(repos.split(' ').chain(arguments.split(' ')))
            .current_dir(&self.place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut pipe = child.stdin.take().ok_or("no pipe")?;
        pipe.write_all(input)?;
        drop(pipe);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("vdsmstore {arguments} failed").into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn repos(&self) -> String {
        let place = |name| format!("--repo {name}=localfs-1.0:{}", self.at(name).display());
        format!("{} {} --repo FAR=localfs-1.0:{}", place("A"), place("B"), self.at("far/FAR").display())
    }

    /// The volume of an image, as QEMU is told.
    fn path(&self, repo: &str, image: &str) -> Result<String> {
        let told = self.command(&format!("--json image prepare {repo} {image} --read-only"), &[])?;
        self.command(&format!("image teardown {repo} {image}"), &[])?;
        let value: serde_json::Value = serde_json::from_str(&told)?;
        Ok(value["path"].as_str().ok_or("no path")?.to_owned())
    }

    /// With an ancestor that both have; without, the base in another repository, read or known by its hashes; the same where that is
    /// far away.
    pub(super) fn incremental(&self, what: &str) -> Result<()> {
        let far = Mounted::at("ext4", self.at("far.file"), self.at("far"), 4 << 10);
        let slow = Throttle::new(far.path(), Transfer::Read, RATE);
        slow.enter();
        for (name, place) in [("A", "A"), ("B", "B"), ("FAR", "far/FAR")] {
            fs::create_dir(self.at(place))?;
            self.command(&format!("repo format {name}"), &[])?;
        }
        tool("cp", &["--sparse=always", text(&self.at("real"))?, text(&self.at("grown"))?])?;
        File::options().write(true).open(self.at("grown"))?.set_len(SIZE)?;
        let disk = self.command("image import A grown -f raw", &[])?;
        fs::remove_file(self.at("grown"))?;
        let mut bases = Vec::new();
        for repo in ["B", "FAR"] {
            let plain = self.command(&format!("image copy {repo} {disk} --snapshot"), &[])?;
            let known = self.command(&format!("image copy {repo} {disk} --snapshot --verify"), &[])?;
            bases.push((repo, plain, known));
        }
        let ancestor = self.command(&format!("image snapshot A {disk}"), &[])?;
        let mut seed = 77;
        let mut piece = vec![0; MIB as usize];
        let count = changes();
        let changed = File::create(self.at("changed"))?;
        changed.set_len(SIZE)?;
        for part in 0..count {
            let at = (part * 20 + noise(&mut seed) % 16) * MIB;
            fill_with_noise(&mut piece, &mut seed);
            self.command(&format!("image write A {disk} --offset {at}"), &piece)?;
            changed.write_all_at(&piece, at)?;
        }
        changed.sync_all()?;
        let top = self.path("A", &disk)?;
        // Where the file system shares extents, snapshots are clones.
        let format = if what.is_empty() { "qcow2" } else { "raw" };
        let side = |name: &str, command: String| Side { name: name.to_owned(), command };
        let copy =
            |repo: &str, base: &str| format!("OURS {} image copy {repo} {disk} --base {base}", self.repos());
        let below = self.path("A", &ancestor)?;
        let mut sides = Self::qemu(&format!("-f qcow2 -O qcow2 -B {below} -F raw"), &top, "theirs.qcow2");
        sides.push(side("floor, what changed only", "FLOOR qcow2 changed floor.qcow2".to_owned()));
        // Of a raw disk `cat` would read all its holes.
        let mut reads = top.as_str();
        if !what.is_empty() {
            // What is shared is found by the file system's map, which QEMU does not ask.
            sides.retain(|side| !side.name.starts_with("qemu-img"));
            reads = "";
        }
        let row = format!("64 GiB, {count} MiB changed, common ancestor{what}");
        self.row(&Row::new(row, reads, copy("A", &ancestor), sides))?;
        for (repo, plain, known) in bases {
            let base = self.path(repo, &plain)?;
            let create = format!("qemu-img create -q -f qcow2 -F {format} -b {top} theirs.qcow2");
            let rebase = format!("qemu-img rebase -t none -T none -f qcow2 -F raw -b {base}");
            let command =
                format!("rm -f theirs.qcow2 && {create} && {rebase} theirs.qcow2 && sync theirs.qcow2");
            let mut sides = vec![side("ours, without hashes", copy(repo, &plain))];
            // It takes long, and is no result that is looked at.
            if !is_smoke() {
                sides.push(side("qemu-img rebase", command));
            }
            let far =
                if repo == "FAR" { format!(", base at {} MB/s", RATE / 1_000_000) } else { String::new() };
            let row = format!("64 GiB, {count} MiB changed, no ancestor{far}, with hashes{what}");
            self.row(&Row::new(row, "", copy(repo, &known), sides))?;
        }
        let made = self.command(&format!("image copy A {disk} --base {ancestor}"), &[])?;
        let made = self.path("A", &made)?;
        self.same(&made, "qcow2", &top, format)
    }
}
