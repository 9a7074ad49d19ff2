//! How fast the bytes move: beside `qemu-img`, `cp`, and a program that does the least (`floor/floor.c`). All sides are programs of
//! their own, from cold caches unless it is said, until the data is on disk. Needs root, 20 GiB.

mod incremental;

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vdsmstore_mounts::Mounted;

use crate::numbers::{Samples, is_full, is_smoke, seconds, turns};
use crate::scene::{Result, fill_with_noise, noise, text, tool};

const MIB: u64 = 1 << 20;

/// Of each disk.
fn size() -> u64 {
    if is_smoke() { 256 << 20 } else { 2 << 30 }
}

/// What `qemu-img convert` is tried with; the fastest of the first turn goes on.
const QEMU: &[&str] = &["-t none -T none -W -m 16", "-t none -T none", "-W -m 16"];
/// On file systems that share extents.
const QEMU_CLONES: &str = "-C";

/// A side of a comparison: programs with their arguments, `&&` between them, as `floor/clock.c` runs them. `OURS` and `FLOOR` are
/// replaced.
#[derive(Clone)]
struct Side {
    name: String,
    command: String,
}

/// What is measured beside one another.
struct Row<'a> {
    what: String,
    /// Files of which the page cache has all when it is measured warm, which it is where all rows are asked for; none: never.
    reads: &'a str,
    /// It is warm in short runs, too.
    warm: bool,
    /// What each turn of a side begins with, and is not timed.
    before: &'a str,
    ours: String,
    peers: Vec<Side>,
}

impl<'a> Row<'a> {
    fn new(what: String, reads: &'a str, ours: String, peers: Vec<Side>) -> Row<'a> {
        Row { what, reads, warm: false, before: "true", ours, peers }
    }
}

#[derive(Clone, Default)]
struct Numbers {
    wall: Samples,
    cpu: Samples,
    memory: Samples,
}

struct Bench {
    place: PathBuf,
    ours: String,
    floor: String,
    /// Measures what it runs.
    clock: PathBuf,
    /// What is run, with its libraries.
    programs: Vec<PathBuf>,
    /// What came out is what it should be, so many times.
    same: Cell<u32>,
}

/// What [`run`] measures, in this order.
pub const GROUPS: &[&str] = &["copies", "chain", "compares", "compressed", "huge", "merge", "incremental"];
/// What [`run_reflinks`] measures.
pub const REFLINK_GROUPS: &[&str] = &["copies", "chain", "compares", "compressed", "merge", "incremental"];

/// Copies, conversions, comparisons, on the file system that the directory is on; of no groups: nothing.
pub fn run(directory: &Path, groups: &[&str]) -> Result<()> {
    if groups.is_empty() {
        return Ok(());
    }
    let place = directory.join("speed");
    fs::create_dir(&place)?;
    Bench::new(directory, place.clone())?.groups(groups, "")?;
    Ok(fs::remove_dir_all(place)?)
}

/// The same where the file system shares extents: XFS.
pub fn run_reflinks(directory: &Path, groups: &[&str]) -> Result<()> {
    if groups.is_empty() {
        return Ok(());
    }
    let place = directory.join("xfs");
    let _mounted = Mounted::at("xfs", directory.join("xfs.file"), place.clone(), 12 << 10);
    Bench::new(directory, place)?.groups(groups, ", XFS")
}

impl Bench {
    fn new(directory: &Path, place: PathBuf) -> Result<Bench> {
        let program = std::env::current_exe()?.with_file_name("vdsmstore");
        let compiled = |name: &str| -> Result<PathBuf> {
            let (made, source) =
                (directory.join(name), format!("{}/floor/{name}.c", env!("CARGO_MANIFEST_DIR")));
            tool("gcc", &["-O2", "-march=native", "-o", text(&made)?, &source])?;
            Ok(made)
        };
        let (floor, clock) = (compiled("floor")?, compiled("clock")?);
        let mut programs = vec![program.clone(), floor.clone(), clock.clone()];
        for tool in ["cp", "sync", "qemu-img", "qemu-nbd", "nbdcopy"] {
            programs.extend(needed(tool)?);
        }
        println!("\nbytes moved; ratios are the other's time by ours, over 1: we are faster");
        Ok(Bench {
            place,
            ours: text(&program)?.to_owned(),
            floor: text(&floor)?.to_owned(),
            clock,
            programs,
            same: Cell::new(0),
        })
    }
}

/// A program and its libraries; none if it is not there.
fn needed(program: &str) -> Result<Vec<PathBuf>> {
    let script = "path=$(command -v \"$1\") || exit 0; echo \"$path\"; ldd \"$path\" | grep -o '/[^ ]*'";
    let output = Command::new("sh").args(["-c", script, "sh", program]).output()?;
    Ok(String::from_utf8(output.stdout)?.lines().map(PathBuf::from).collect())
}

impl Bench {
    fn groups(&self, groups: &[&str], what: &str) -> Result<()> {
        self.sources()?;
        for group in groups {
            match *group {
                "copies" => self.copies(what)?,
                "chain" => self.chain(what)?,
                "compares" => self.compares(what)?,
                "compressed" => self.compressed(what)?,
                "huge" => self.huge()?,
                "incremental" => self.incremental(what)?,
                "merge" => self.merges(what)?,
                other => return Err(format!("no group {other:?}").into()),
            }
            self.tidy()?;
        }
        println!("\nmoves: {} compared, all the same", self.same.get());
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// What the sides made goes.
    fn tidy(&self) -> Result<()> {
        ["ours", "theirs", "cp", "nbdcopy", "floor", "twin"].iter().try_for_each(|made| self.remove(made))
    }

    /// The raw and the qcow2 file of that name.
    fn remove(&self, made: &str) -> Result<()> {
        for format in ["raw", "qcow2"] {
            match fs::remove_file(self.at(&format!("{made}.{format}"))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// `real`: what programs are made of, half of the disk, in pieces of 4 to 64 MiB; `sparse`: 2 % of it, in pieces of 64 KiB;
    /// `half`: every other 64 KiB of the first half; `full`: noise, half as large.
    fn sources(&self) -> Result<()> {
        let mut seed = 1;
        let mut content = Content::new();
        let mut block = vec![0; MIB as usize];
        let file = |name: &str| -> Result<File> {
            let file = File::create(self.at(name))?;
            file.set_len(size())?;
            Ok(file)
        };
        let real = file("real")?;
        let mut at = 0;
        while at < size() {
            let length = (4 << (noise(&mut seed) % 5)) * MIB;
            if noise(&mut seed).is_multiple_of(2) {
                for at in (at..(at + length).min(size())).step_by(block.len()) {
                    content.fill(&mut block)?;
                    real.write_all_at(&block, at)?;
                }
            }
            at += length;
        }
        let small = 64 << 10;
        let sparse = file("sparse")?;
        for piece in 0..size() / small / 50 {
            fill_with_noise(&mut block[..small as usize], &mut seed);
            sparse.write_all_at(&block[..small as usize], piece * 50 * small)?;
        }
        let half = file("half")?;
        for piece in 0..size() / small / 4 {
            fill_with_noise(&mut block[..small as usize], &mut seed);
            half.write_all_at(&block[..small as usize], piece * 2 * small)?;
        }
        let full = file("full")?;
        full.set_len(size() / 2)?;
        for at in (0..size() / 2).step_by(block.len()) {
            fill_with_noise(&mut block, &mut seed);
            full.write_all_at(&block, at)?;
        }
        for file in [real, sparse, half, full] {
            file.sync_all()?;
        }
        Ok(())
    }

    fn qemu(formats: &str, source: &str, target: &str) -> Vec<Side> {
        let side = |options: &&str| Side {
            name: format!("qemu-img {options}"),
            command: format!("qemu-img convert {options} {formats} {source} {target} && sync {target}"),
        };
        QEMU.iter().map(side).collect()
    }

    fn copies(&self, what: &str) -> Result<()> {
        let side = |name: &str, command: String| Side { name: name.to_owned(), command };
        for source in ["real", "sparse", "half", "full"] {
            let convert = |format| format!("OURS file convert -f raw -O {format} {source} ours.{format}");
            let mut sides = Self::qemu("-f raw -O raw", source, "theirs.raw");
            if !what.is_empty() {
                sides.push(side(
                    "qemu-img -C",
                    format!(
                        "qemu-img convert {QEMU_CLONES} -f raw -O raw {source} theirs.raw && sync theirs.raw"
                    ),
                ));
            }
            sides.push(side(
                "cp",
                format!("cp --sparse=always --reflink=auto {source} cp.raw && sync cp.raw"),
            ));
            if what.is_empty() && source == "real" && tool("nbdcopy", &["--version"]).is_ok() {
                let all = size();
                let served = format!("[ qemu-nbd -r -f raw --cache=none --aio=native {source} ]");
                sides.push(side(
                    "nbdcopy",
                    format!(
                        "truncate -s {all} nbdcopy.raw && nbdcopy -- {served} nbdcopy.raw && sync nbdcopy.raw"
                    ),
                ));
            }
            sides.push(side("floor", format!("FLOOR copy {source} floor.raw")));
            let row = Row::new(format!("{source}, raw to raw{what}"), source, convert("raw"), sides);
            self.row(&Row { warm: source == "real", ..row })?;
            self.same(source, "raw", "ours.raw", "raw")?;
            let mut sides = Self::qemu("-f raw -O qcow2", source, "theirs.qcow2");
            sides.push(side("floor", format!("FLOOR qcow2 {source} floor.qcow2")));
            self.row(&Row::new(format!("{source}, raw to qcow2{what}"), source, convert("qcow2"), sides))?;
            self.same(source, "raw", "ours.qcow2", "qcow2")?;
            self.same(source, "raw", "floor.qcow2", "qcow2")?;
        }
        Ok(())
    }

    /// A chain of five: on the lowest, a qcow2 of `real`, four with changes here and there.
    fn chain(&self, what: &str) -> Result<()> {
        let (mut seed, mut below, mut backing) = (9, "real".to_owned(), " --backing real:raw".to_owned());
        for layer in 1..5 {
            let (name, path) = (format!("layer{layer}"), self.at(&format!("layer{layer}")));
            let format = if layer == 1 { "raw" } else { "qcow2" };
            let base = self.at(&below);
            tool(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", "-F", format, "-b", text(&base)?, text(&path)?],
            )?;
            let writes: Vec<String> = (0..24)
                .map(|_| format!("write -q -P {layer} {} 2M", noise(&mut seed) % (size() / MIB - 2) * MIB))
                .collect();
            let mut arguments = vec!["-f", "qcow2"];
            for write in &writes {
                arguments.extend(["-c", write]);
            }
            arguments.push(text(&path)?);
            tool("qemu-io", &arguments)?;
            if layer < 4 {
                backing = format!(" --backing {name}:qcow2{backing}");
            }
            below = name;
        }
        self.run("qemu-img convert -f qcow2 -O raw layer4 flat")?;
        for (format, floor) in [("raw", "copy"), ("qcow2", "qcow2")] {
            let target = format!("ours.{format}");
            let ours = format!("OURS file convert -f qcow2{backing} -O {format} layer4 {target}");
            let theirs = format!("theirs.{format}");
            let mut sides = Self::qemu(&format!("-f qcow2 -O {format}"), "layer4", &theirs);
            // The same bytes from one file.
            sides.push(Side {
                name: "floor, of the flat disk".to_owned(),
                command: format!("FLOOR {floor} flat floor.{format}"),
            });
            let reads = "real layer1 layer2 layer3 layer4 flat";
            self.row(&Row::new(format!("chain of 5 to {format}{what}"), reads, ours, sides))?;
            self.same("layer4", "qcow2", &target, format)?;
        }
        Ok(fs::remove_file(self.at("flat"))?)
    }

    /// An overlay goes into the raw file below it: with data of half the disk, and with 200 MiB of it, here and there.
    fn merges(&self, what: &str) -> Result<()> {
        let half: Vec<u64> = (0..64).map(|index| index * (size() / 64)).collect();
        self.merge(&format!("merge down of half the disk{what}"), &half, size() / 128)?;
        let (pieces, mut seed) = (if is_smoke() { 10 } else { 100 }, 3);
        let step = size() / pieces / MIB;
        let few: Vec<u64> =
            (0..pieces).map(|index| (index * step + noise(&mut seed) % (step - 2)) * MIB).collect();
        self.merge(&format!("commit of {} MiB{what}", 2 * pieces), &few, 2 * MIB)?;
        for name in ["merge.top", "merge.qcow2", "merge.raw"] {
            fs::remove_file(self.at(name))?;
        }
        Ok(())
    }

    fn merge(&self, row: &str, offsets: &[u64], length: u64) -> Result<()> {
        let top = self.at("merge.top");
        let all = size().to_string();
        tool(
            "qemu-img",
            &["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "merge.raw", text(&top)?, &all],
        )?;
        let before = "cp --reflink=auto real merge.raw && cp --reflink=auto merge.top merge.qcow2";
        self.run("cp --reflink=auto real merge.raw")?;
        let mut arguments = vec!["-f".to_owned(), "qcow2".to_owned()];
        for (index, offset) in offsets.iter().enumerate() {
            arguments.extend(["-c".to_owned(), format!("write -q -P {} {offset} {length}", index + 1)]);
        }
        arguments.push(text(&top)?.to_owned());
        tool("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        let ours = "OURS file commit -d -f qcow2 merge.qcow2 --backing merge.raw:raw";
        let theirs = |options: &str| Side {
            name: format!("qemu-img commit {options}"),
            command: format!("qemu-img commit -q -d {options} -f qcow2 merge.qcow2 && sync merge.raw"),
        };
        let sides = vec![theirs(""), theirs("-t none")];
        let reads = "merge.raw merge.qcow2";
        self.row(&Row { before, ..Row::new(row.to_owned(), reads, ours.to_owned(), sides) })?;
        self.run(&format!("{before} && {}", ours.replace("OURS", &self.ours)))?;
        self.same("merge.qcow2", "qcow2", "merge.raw", "raw")
    }

    fn compares(&self, what: &str) -> Result<()> {
        let side = |name: &str, command: &str| Side { name: name.to_owned(), command: command.to_owned() };
        // With the same holes: the floor looks at data only.
        let (one, other) = (self.at("real"), self.at("twin.raw"));
        tool("cp", &["--sparse=always", "--reflink=never", text(&one)?, text(&other)?])?;
        let sides = vec![
            side("qemu-img", "qemu-img compare -q -f raw -F raw real twin.raw"),
            side("qemu-img -T none", "qemu-img compare -q -T none -f raw -F raw real twin.raw"),
            side("floor", "FLOOR compare real twin.raw"),
        ];
        let ours = "OURS file compare -f raw -F raw real twin.raw".to_owned();
        self.row(&Row { warm: true, ..Row::new(format!("compare{what}"), "real twin.raw", ours, sides) })
    }

    fn compressed(&self, what: &str) -> Result<()> {
        for (ours, theirs) in [("zstd", "zstd"), ("zlib", "zlib")] {
            let command =
                format!("OURS file convert -c -f raw -O qcow2 -o compression_type={ours} real ours.qcow2");
            let options = format!("-c -W -m 16 -o compression_type={theirs}");
            let qemu =
                format!("qemu-img convert {options} -f raw -O qcow2 real theirs.qcow2 && sync theirs.qcow2");
            let sides = vec![Side { name: format!("qemu-img {options}"), command: qemu }];
            self.row(&Row::new(format!("compress, {ours}{what}"), "real", command, sides))?;
            self.same("real", "raw", "ours.qcow2", "qcow2")?;
        }
        Ok(())
    }

    /// 16 TiB, of which 1 GiB is data, in pieces of 16 MiB.
    fn huge(&self) -> Result<()> {
        let (path, each) = (self.at("huge"), if is_smoke() { "1M" } else { "16M" });
        tool("qemu-img", &["create", "-q", "-f", "qcow2", text(&path)?, "16T"])?;
        let writes: Vec<String> =
            (0..64).map(|piece| format!("write -q -P {} {}G {each}", piece + 1, piece * 255)).collect();
        let mut arguments = vec!["-f", "qcow2"];
        for write in &writes {
            arguments.extend(["-c", write]);
        }
        arguments.push(text(&path)?);
        tool("qemu-io", &arguments)?;
        let ours = "OURS file convert -f qcow2 -O qcow2 huge ours.qcow2".to_owned();
        let sides = Self::qemu("-f qcow2 -O qcow2", "huge", "theirs.qcow2");
        self.row(&Row::new("16 TiB with 1 GiB of data, qcow2 to qcow2".to_owned(), "huge", ours, sides))?;
        self.same("huge", "qcow2", "ours.qcow2", "qcow2")?;
        Ok(fs::remove_file(path)?)
    }

    /// Runs the sides in turns, and prints what came out. Of several ways to run a program of QEMU, only the fastest goes on after
    /// the first turn.
    fn row(&self, row: &Row<'_>) -> Result<()> {
        self.measure(row, true)?;
        if row.warm || is_full() && !row.reads.is_empty() { self.measure(row, false) } else { Ok(()) }
    }

    fn measure(&self, row: &Row<'_>, cold: bool) -> Result<()> {
        let sides = [Side { name: "ours".to_owned(), command: row.ours.clone() }];
        let sides = sides.into_iter().chain(row.peers.iter().cloned());
        let mut before = row.before.to_owned();
        if !cold {
            before = format!("{before} && cat {} > /dev/null", row.reads);
        }
        let mut sides: Vec<(Side, Numbers)> = sides.map(|side| (side, Numbers::default())).collect();
        for turn in 0..turns(3, 5) {
            let count = sides.len();
            for index in 0..count {
                let (side, numbers) = &mut sides[(index + turn) % count];
                self.clear(side)?;
                self.run(&before)?;
                self.once(side, cold, numbers)?;
            }
            let is_qemu = |side: &Side| side.name.starts_with("qemu-img");
            let walls = sides.iter().filter(|(side, _)| is_qemu(side)).map(|(_, found)| found.wall.median());
            let best = walls.fold(f64::INFINITY, f64::min);
            if turn == 0 {
                sides.retain(|(side, found)| !is_qemu(side) || found.wall.median() <= best);
            }
        }
        println!("\n{}, {}", row.what, if cold { "cold" } else { "warm" });
        let ours = sides[0].1.clone();
        for (side, found) in &sides {
            let ratio = found.wall.over(&ours.wall).ratio();
            let cpu = found.cpu.over(&ours.cpu).ratio();
            println!(
                "  {:<40} {:>9}  x {ratio:<22} CPU {:>8}  x {cpu:<22} {:>4.0} MiB",
                side.name,
                seconds(found.wall.median()),
                seconds(found.cpu.median()),
                found.memory.median() / 1024.0,
            );
        }
        Ok(())
    }

    /// What a side made before goes: to replace it takes time that is of no interest, half a second on ext4 where it is in thousands of
    /// places.
    fn clear(&self, side: &Side) -> Result<()> {
        match side.name.split([' ', ',']).next().unwrap_or_default() {
            "qemu-img" => self.remove("theirs"),
            own => self.remove(own),
        }
    }

    fn run(&self, command: &str) -> Result<()> {
        let status = Command::new("sh").args(["-c", command]).current_dir(&self.place).status()?;
        if status.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
    }

    fn once(&self, side: &Side, cold: bool, numbers: &mut Numbers) -> Result<()> {
        tool("sync", &[])?;
        if cold && is_smoke() {
            self.forget()?;
        } else if cold {
            fs::write("/proc/sys/vm/drop_caches", "3")?;
            // Of images, not of programs.
            for program in &self.programs {
                std::hint::black_box(fs::read(program)?);
            }
        }
        let command = side.command.replace("OURS", &self.ours).replace("FLOOR", &self.floor);
        let told = self.at("told");
        let output = Command::new(&self.clock)
            .arg(&told)
            .args(command.split_whitespace())
            .current_dir(&self.place)
            // Else some read files of their language, which are not in the page cache.
            .env("LC_ALL", "C")
            .output()?;
        if !output.status.success() {
            std::io::stderr().write_all(&output.stderr)?;
            return Err(format!("{command:?} failed").into());
        }
        let told = fs::read_to_string(told)?;
        let numbers_told: Vec<f64> =
            told.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [wall, user, system, memory] = numbers_told[..] else {
            return Err(format!("the clock said {told:?}").into());
        };
        numbers.wall.push(wall / 1e6);
        // Of no time nothing is a multiple.
        numbers.cpu.push((user + system).max(1.0) / 1e6);
        numbers.memory.push(memory);
        Ok(())
    }

    fn same(&self, source: &str, from: &str, target: &str, to: &str) -> Result<()> {
        let (source, target) = (self.at(source), self.at(target));
        let compare = ["compare", "-q", "-f", from, "-F", to, text(&source)?, text(&target)?];
        tool("qemu-img", &compare)?;
        self.same.set(self.same.get() + 1);
        Ok(())
    }

    /// What the page cache has of the files here goes, and nothing else, which others may need.
    fn forget(&self) -> Result<()> {
        for entry in fs::read_dir(&self.place)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                tool(
                    "dd",
                    &[&format!("if={}", text(&entry.path())?), "iflag=nocache", "count=0", "status=none"],
                )?;
            }
        }
        Ok(())
    }
}

/// Bytes of the programs of this machine, one file after the other.
struct Content {
    files: Vec<PathBuf>,
    open: Option<File>,
    seed: u64,
}

impl Content {
    fn new() -> Content {
        let mut files = Vec::new();
        let mut folders: Vec<PathBuf> = vec!["/usr/lib".into(), "/usr/bin".into()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            for entry in entries {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(kind) if kind.is_file() => files.push(entry.path()),
                    _ => {}
                }
            }
        }
        Content { files, open: None, seed: 7 }
    }

    fn fill(&mut self, block: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < block.len() {
            let read = match &mut self.open {
                Some(file) => file.read(&mut block[done..])?,
                None => 0,
            };
            if read == 0 {
                self.open = self.files.pop().and_then(|path| File::open(path).ok());
                if self.open.is_none() && self.files.is_empty() {
                    fill_with_noise(&mut block[done..], &mut self.seed);
                    return Ok(());
                }
            }
            done += read;
        }
        Ok(())
    }
}
