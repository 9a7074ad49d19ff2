//! Commands and flags. Help, man pages and completions are generated from here.

pub mod file;

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use vdsmstore_core::options::Bandwidth;

use crate::config::RepoSpec;
use crate::size;

/// Storage for images of virtual machines.
#[derive(Debug, Parser)]
#[command(
    name = "vdsmstore",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Repositories are given with --repo, or in a config file: $VDSMSTORE_CONFIG, else \
                  ~/.config/vdsmstore.toml, else /etc/vdsmstore.toml:\n\n    \
                  [repositories.A]\n    format = \"localfs-1.0\"\n    path = \"/srv/images\"\n\n\
                  Exit status: 0 done, 1 failed, 2 usage, 3 done but degraded, 130 interrupted (the work can be \
                  resumed)."
)]
pub struct Cli {
    /// A repository: its name here, its format and where it is; may be repeated.
    ///
    /// The location of a localfs repository is its directory. Images are searched for in the target first, then in
    /// the others in the order in which they are given.
    #[arg(long = "repo", value_name = "NAME=FORMAT:LOCATION", help_heading = "General options")]
    pub repo: Vec<RepoSpec>,

    /// Print JSON: results on standard output, errors on standard error.
    #[arg(long, global = true, help_heading = "General options")]
    pub json: bool,

    /// The label under which this host's work is recorded; default: the machine's name.
    #[arg(long, global = true, value_name = "LABEL", help_heading = "General options")]
    pub host_id: Option<String>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make and look at repositories.
    #[command(subcommand)]
    Repo(RepoCommand),
    /// Work with images: virtual disks and snapshots.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Work with plain files, as qemu-img does.
    #[command(subcommand)]
    File(file::FileCommand),
    /// Draw the images of a repository and what they are stored on.
    Graph(GraphArgs),
    /// Write man pages and completions.
    #[command(hide = true)]
    Generate(GenerateArgs),
}

/// `repo ...`
#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Make an empty repository; its place must be empty.
    Format(RepoFormat),
    /// List the repositories that are given, and whether they can be reached.
    List,
    /// Show space, counts and capabilities.
    Info(OneRepo),
    /// List what is unfinished or could be better, and what doing it costs.
    Check(RepoCheck),
    /// Do what a check lists: one fix, or all of them.
    Fix(RepoFix),
}

/// `repo check`
#[derive(Debug, Args)]
pub struct RepoCheck {
    #[command(flatten)]
    pub repo: OneRepo,
    /// Find out exactly what each fix costs, from the maps of the images; takes longer.
    #[arg(long)]
    pub exact: bool,
}

/// `repo fix`
#[derive(Debug, Args)]
#[command(
    after_help = "FILE holds one fix or a list of them, as `repo check --json` prints it. With --all the check and its \
                  fixes are repeated until nothing is left or nothing moves any more; this is what a timer runs. \
                  Exit status: 0 nothing is left, 3 something is left that cannot be done now (an image is in use, a \
                  source is not there, a fix is out of date), 1 something failed."
)]
pub struct RepoFix {
    #[command(flatten)]
    pub repo: OneRepo,
    /// What to do, as JSON; `-`: from standard input.
    #[arg(value_name = "FILE", required_unless_present = "all", conflicts_with = "all")]
    pub file: Option<PathBuf>,
    /// Everything that a check lists.
    #[arg(long)]
    pub all: bool,
    /// Only fixes of this type; may be repeated.
    #[arg(long = "type", value_name = "TYPE", value_enum, requires = "all", conflicts_with = "file")]
    pub types: Vec<FixTypeArg>,
    /// Only list what would be done first.
    #[arg(long, requires = "all", conflicts_with_all = ["watch", "file"])]
    pub dry_run: bool,
    /// Do it again and again, with pauses of so many seconds, until interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = size::seconds, requires = "all", conflicts_with = "file")]
    pub watch: Option<std::time::Duration>,
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// `--type`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FixTypeArg {
    /// Gives space back.
    Clean,
    /// Brings an image to its best representation.
    Optimize,
    /// Makes one volume of two, where nobody wants the image between them.
    Merge,
    /// Completes what was begun.
    Mend,
}

/// How fast data is moved.
#[derive(Clone, Copy, Debug, Args)]
pub struct LimitArgs {
    /// At most so many bytes per second, also for whoever goes on with the work: a number, or one with K, M or G.
    #[arg(long, value_name = "BYTES", value_parser = size::bandwidth)]
    pub bandwidth: Option<Bandwidth>,
}

/// `repo format`
#[derive(Debug, Args)]
pub struct RepoFormat {
    /// Name of the repository, as given by --repo or the config file.
    #[arg(value_name = "REPO")]
    pub name: String,
    /// Numeric user id that owns everything in it.
    #[arg(long, value_name = "UID")]
    pub owner: Option<u32>,
    /// Numeric group id of everything in it.
    #[arg(long, value_name = "GID")]
    pub group: Option<u32>,
    /// Permission bits of its directories, octal.
    #[arg(long, value_name = "MODE", value_parser = size::octal)]
    pub mode: Option<u32>,
}

/// One repository.
#[derive(Debug, Args)]
pub struct OneRepo {
    /// Name of the repository.
    #[arg(value_name = "REPO")]
    pub repo: String,
}

/// One image.
#[derive(Debug, Args)]
pub struct OneImage {
    /// Name of the repository.
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// Id of the image.
    #[arg(value_name = "IMAGE")]
    pub image: String,
}

/// `image ...`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Create a virtual disk, empty or from a snapshot; prints its id.
    Create(ImageCreate),
    /// Take a snapshot of a virtual disk, which keeps its id; prints the snapshot's id.
    Snapshot(ImageSnapshot),
    /// Copy an image to a repository, whole or as the difference to a base there; prints the copy's id.
    Copy(ImageCopy),
    /// Make a virtual disk from a raw or qcow2 file; prints its id.
    Import(ImageImport),
    /// Remove an image; what is built on it stays whole.
    Remove(ImageRemove),
    /// Show whether an image can be used, and what works on it.
    Status(OneImage),
    /// List the images of a repository.
    List(ImageList),
    /// Show what an image is.
    Info(OneImage),
    /// Wait until an image can be used, whichever host brings it there.
    Wait(ImageWait),
    /// Stop the work on an image, whichever process of this machine and user does it; it can be gone on with.
    Stop(OneImage),
    /// Replace the user data of an image.
    SetUserdata(ImageSetUserData),
    /// Say how an image's data is to be held; the work is left to `repo fix`.
    SetStrategy(ImageSetStrategy),
    /// Make a virtual disk larger.
    Resize(ImageResize),
    /// Write an image to a raw or qcow2 file, which has its name only when it is whole.
    Export(ImageExport),
    /// List what differs between an image and another, or what an image holds.
    Diff(ImageDiff),
    /// Tell what a copy of an image would take.
    Measure(ImageMeasure),
    /// Write bytes of an image to standard output.
    Read(ImageRead),
    /// Write standard input to a virtual disk.
    Write(ImageWrite),
    /// List which parts of an image hold data.
    Extents(ImageRead),
    /// Make an image ready for QEMU, or run a program with it.
    Prepare(ImagePrepare),
    /// Release a prepared image.
    Teardown(ImageTeardown),
}

/// What a new image is given.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// Any JSON, stored with the image; `@FILE` reads it from a file.
    #[arg(long, value_name = "JSON", default_value = "{}", hide_default_value = true)]
    pub user_data: String,
    /// How to hold the data: in little space, or for speed.
    #[arg(long, value_enum, default_value_t = StrategyArg::Space)]
    pub strategy: StrategyArg,
    /// The new image's id; the same command again then returns it.
    #[arg(long, value_name = "UUID")]
    pub image_id: Option<String>,
    /// Look for an image only in the repository given for it; may be repeated.
    #[arg(long = "hint", value_name = "IMAGE=REPO", value_parser = parse_hint)]
    pub hints: Vec<(String, String)>,
    /// Look for existing images only in this repository; may be repeated.
    #[arg(long = "only", value_name = "REPO")]
    pub only: Vec<String>,
    #[command(flatten)]
    pub work: WorkArgs,
}

/// How far the work goes.
#[derive(Debug, Args)]
pub struct WorkArgs {
    /// Only record what is wanted (AutoFix=False); some host does the work later.
    #[arg(long, visible_alias = "no-fix", conflicts_with = "optimized")]
    pub no_wait: bool,
    /// Go on until the image is in its best representation.
    #[arg(long)]
    pub optimized: bool,
    /// A name for the work: 1 to 128 of A-Z a-z 0-9 . _ : -
    #[arg(long, value_name = "NAME")]
    pub task_id: Option<String>,
}

/// `--strategy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StrategyArg {
    /// Thin: takes what is written.
    Space,
    /// Preallocated, without a base.
    Performance,
}

/// `image create`
#[derive(Debug, Args)]
pub struct ImageCreate {
    /// Name of the repository.
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// Virtual size: bytes, or with K, M, G or T; with --base default: the base's.
    #[arg(value_name = "SIZE", value_parser = size::parse, required_unless_present = "base")]
    pub size: Option<i64>,
    /// The snapshot that it starts from, in any of the repositories.
    #[arg(long, value_name = "SNAPSHOT")]
    pub base: Option<String>,
    #[command(flatten)]
    pub new: NewArgs,
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// `image snapshot`
#[derive(Debug, Args)]
pub struct ImageSnapshot {
    /// Name of the repository.
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// Id of the virtual disk.
    #[arg(value_name = "DISK")]
    pub disk: String,
    #[command(flatten)]
    pub new: NewArgs,
}

/// `image copy`
#[derive(Debug, Args)]
pub struct ImageCopy {
    /// Name of the repository that gets the copy.
    #[arg(value_name = "TARGET")]
    pub repo: String,
    /// Id of the image, in any of the repositories.
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// An image in the target: only the difference to it is stored.
    #[arg(long, value_name = "IMAGE")]
    pub base: Option<String>,
    /// The copy of a disk is a snapshot (a backup).
    #[arg(long)]
    pub snapshot: bool,
    /// The base may be absent from the target; the copy is whole once the base is copied there too.
    #[arg(long, requires = "base")]
    pub partial: bool,
    /// Read back what was written, and keep hashes: the next copy with this one as its base need not read it.
    #[arg(long)]
    pub verify: bool,
    #[command(flatten)]
    pub new: NewArgs,
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// `image import`
#[derive(Debug, Args)]
pub struct ImageImport {
    /// Name of the repository.
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// The file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Its format, which is never guessed.
    #[arg(short, long, value_enum)]
    pub format: FileFormat,
    /// Read back what was written, and keep hashes of it.
    #[arg(long)]
    pub verify: bool,
    #[command(flatten)]
    pub new: NewArgs,
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// Formats of files outside repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// The bytes as they are.
    Raw,
    /// QEMU's.
    Qcow2,
}

/// `image remove`
#[derive(Debug, Args)]
pub struct ImageRemove {
    #[command(flatten)]
    pub image: OneImage,
    /// Only record the removal (AutoFix=False); some host frees the space later.
    #[arg(long, visible_alias = "no-fix")]
    pub no_wait: bool,
    /// A name for the work.
    #[arg(long, value_name = "NAME")]
    pub task_id: Option<String>,
}

/// `image list`
#[derive(Debug, Args)]
pub struct ImageList {
    /// Name of the repository.
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// Only disks, or only snapshots.
    #[arg(long, value_enum)]
    pub kind: Option<KindArg>,
    /// Only ids after this one; the list is in order of ids.
    #[arg(long, value_name = "IMAGE")]
    pub after: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<u64>,
    /// Show kind, sizes and name too.
    #[arg(short = 'l', long)]
    pub details: bool,
}

/// `--kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// Virtual disks.
    Disk,
    /// Snapshots.
    Snapshot,
}

/// `image wait`
#[derive(Debug, Args)]
pub struct ImageWait {
    #[command(flatten)]
    pub image: OneImage,
    /// Until it is in its best representation.
    #[arg(long)]
    pub optimized: bool,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = size::seconds)]
    pub timeout: Option<std::time::Duration>,
}

/// `image set-userdata`
#[derive(Debug, Args)]
pub struct ImageSetUserData {
    #[command(flatten)]
    pub image: OneImage,
    /// Any JSON; `@FILE` reads it from a file.
    #[arg(value_name = "JSON")]
    pub user_data: String,
}

/// `image set-strategy`
#[derive(Debug, Args)]
pub struct ImageSetStrategy {
    #[command(flatten)]
    pub image: OneImage,
    /// In little space, or for speed.
    #[arg(value_enum)]
    pub strategy: StrategyArg,
}

/// `image resize`
#[derive(Debug, Args)]
pub struct ImageResize {
    #[command(flatten)]
    pub image: OneImage,
    /// The new virtual size: bytes, or with K, M, G or T; not less than the present one.
    #[arg(value_name = "SIZE", value_parser = size::parse)]
    pub size: i64,
}

/// `image export`
#[derive(Debug, Args)]
pub struct ImageExport {
    #[command(flatten)]
    pub image: OneImage,
    /// The file, in a directory that exists.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Its format.
    #[arg(short, long, value_enum)]
    pub format: FileFormat,
    /// Replace a file of that name.
    #[arg(long)]
    pub overwrite: bool,
    /// Compress a qcow2 file.
    #[arg(short, long, value_name = "HOW", value_enum)]
    pub compress: Option<Compress>,
    /// At most so many bytes per second: a number, or one with K, M or G.
    #[arg(long, value_name = "BYTES", value_parser = size::bandwidth)]
    pub bandwidth: Option<Bandwidth>,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// Faster and smaller; read by QEMU 5.1 and later.
    Zstd,
    /// Read by every program.
    Deflate,
}

/// `image diff`
#[derive(Debug, Args)]
pub struct ImageDiff {
    #[command(flatten)]
    pub image: OneImage,
    /// The image to compare with, in the same repository.
    #[arg(value_name = "BASE")]
    pub base: Option<String>,
}

/// `image measure`
#[derive(Debug, Args)]
pub struct ImageMeasure {
    #[command(flatten)]
    pub image: OneImage,
    /// The copy is to hold only the difference to this image of the same repository.
    #[arg(long, value_name = "IMAGE")]
    pub base: Option<String>,
    /// The format of the copy.
    #[arg(short, long, value_enum, default_value_t = FileFormat::Raw)]
    pub format: FileFormat,
    /// What is written is read back.
    #[arg(long)]
    pub verify: bool,
}

/// `image read`, `image extents`
#[derive(Debug, Args)]
pub struct ImageRead {
    #[command(flatten)]
    pub image: OneImage,
    /// Where to start: bytes, or with K, M, G or T.
    #[arg(long, value_parser = size::parse, default_value = "0")]
    pub offset: i64,
    /// How much; default: to the end.
    #[arg(long, value_parser = size::parse)]
    pub length: Option<i64>,
}

/// `image write`
#[derive(Debug, Args)]
pub struct ImageWrite {
    #[command(flatten)]
    pub image: OneImage,
    /// Where to start: bytes, or with K, M, G or T.
    #[arg(long, value_parser = size::parse, default_value = "0")]
    pub offset: i64,
    /// At most so much of the input; default: all of it.
    #[arg(long, value_parser = size::parse)]
    pub length: Option<i64>,
}

/// `image prepare`
#[derive(Debug, Args)]
#[command(
    after_help = "Prints `FORMAT PATH`; with --json also QEMU's -blockdev tree and libvirt's <disk> source. The image \
                  stays prepared when this program ends, until `image teardown`. With --exec it is prepared for the \
                  life of CMD, in whose arguments {path}, {format}, {blockdev} and {libvirt} are replaced, which \
                  finds the same in $VDSMSTORE_PATH, $VDSMSTORE_FORMAT, $VDSMSTORE_BLOCKDEV and $VDSMSTORE_LIBVIRT, \
                  and whose exit status becomes ours."
)]
pub struct ImagePrepare {
    #[command(flatten)]
    pub image: OneImage,
    /// For reading; snapshots can be prepared only so.
    #[arg(short = 'r', long)]
    pub read_only: bool,
    /// Run CMD (all that follows) with the image, and release it afterwards.
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    pub exec: Vec<std::ffi::OsString>,
}

/// `image teardown`
#[derive(Debug, Args)]
pub struct ImageTeardown {
    #[command(flatten)]
    pub image: OneImage,
    /// The host that holds it is known to be dead.
    #[arg(long)]
    pub force: bool,
}

/// `graph`
#[derive(Debug, Args)]
pub struct GraphArgs {
    /// Name of the repository.
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// A tree for the terminal (the default), a picture, or input for Graphviz.
    #[arg(short, long, value_enum, conflicts_with = "json")]
    pub format: Option<GraphFormat>,
    /// Write to this file.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `graph --format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// A tree of lines.
    Text,
    /// Graphviz.
    Dot,
    /// A picture.
    Svg,
}

/// `generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What to write.
    #[arg(value_enum)]
    pub what: GenerateWhat,
    /// The directory, which exists.
    pub directory: PathBuf,
}

/// What `generate` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenerateWhat {
    /// Man pages, one per command.
    Man,
    /// For bash, zsh and fish, each in a file with the shell's usual name.
    Completions,
}

fn parse_hint(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((image, repo)) if !image.is_empty() && !repo.is_empty() => {
            Ok((image.to_owned(), repo.to_owned()))
        }
        _ => Err("IMAGE=REPO is needed".to_owned()),
    }
}

/// The whole definition. `--repo` may stand before or after any command, and all of them count.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let repo = command.get_arguments().find(|arg| arg.get_id() == "repo").cloned();
    match repo {
        Some(repo) => command.mut_subcommands(|sub| with_repo(sub, &repo)),
        None => command,
    }
}

fn with_repo(command: clap::Command, repo: &clap::Arg) -> clap::Command {
    // Commands on plain files know no repositories.
    if command.is_hide_set() || command.get_name() == "file" {
        return command;
    }
    // Where a command has an argument of that id (a repository's name), clap would take them for one.
    command.arg(repo.clone().id("repositories")).mut_subcommands(|sub| with_repo(sub, repo))
}

/// Parses the command line; `--repo` of all levels is gathered in [`Cli::repo`], in order.
pub fn parse<I, T>(arguments: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let matches = command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let mut level = matches.subcommand();
    while let Some((_, matches)) = level {
        if let Ok(Some(more)) = matches.try_get_many::<RepoSpec>("repositories") {
            cli.repo.extend(more.cloned());
        }
        level = matches.subcommand();
    }
    Ok(cli)
}
