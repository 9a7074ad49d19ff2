//! The operations of the random test, and how they are made up.

use proptest::prelude::*;

/// One of however many there are.
#[derive(Clone, Copy, Debug)]
pub struct Pick(pub u8);

impl Pick {
    pub fn of<T: Clone>(self, all: &[T]) -> Option<T> {
        all.get(usize::from(self.0) % all.len().max(1)).cloned()
    }
}

/// How far the work goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Auto {
    Off,
    On,
    Optimized,
}

#[derive(Clone, Copy, Debug)]
pub enum How {
    Data(u8),
    Zeroes,
    Discard,
}

/// A range as parts of the image.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub at: u16,
    pub length: u32,
    pub aligned: bool,
}

impl Range {
    pub fn of(self, size: usize) -> (usize, usize) {
        let unit = if self.aligned { 65536 } else { 1 };
        let start = ((size * usize::from(self.at)) >> 16) / unit * unit;
        let length = (self.length as usize).next_multiple_of(unit).min(size - start);
        (start, length)
    }
}

/// The moment of a host's death.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Microseconds after it began.
    After(u64),
    /// Thousandths of the data in place.
    Done(u64),
}

/// The images that an operation names are picked from those that exist, and sometimes from those that did.
#[derive(Clone, Debug)]
pub enum Op {
    Create {
        store: usize,
        repo: usize,
        sectors: u16,
        performance: bool,
        auto: Auto,
    },
    CreateOn {
        store: usize,
        repo: usize,
        base: Pick,
        grow: Option<u16>,
        performance: bool,
        auto: Auto,
    },
    Snapshot {
        store: usize,
        image: Pick,
        auto: Auto,
    },
    Copy {
        store: usize,
        target: usize,
        image: Pick,
        performance: bool,
        mutable: bool,
        auto: Auto,
    },
    CopyOn {
        store: usize,
        target: usize,
        image: Pick,
        base: Pick,
        performance: bool,
        mutable: bool,
        partial: bool,
        auto: Auto,
    },
    /// Copies a snapshot to where it was removed.
    BringBack {
        store: usize,
        pick: Pick,
    },
    Write {
        store: usize,
        image: Pick,
        how: How,
        range: Range,
    },
    /// QEMU writes a prepared disk.
    Qemu {
        store: usize,
        image: Pick,
        range: Range,
        byte: u8,
    },
    Open {
        store: usize,
        image: Pick,
        writable: bool,
    },
    Close {
        pick: Pick,
    },
    Remove {
        store: usize,
        image: Pick,
    },
    UserData {
        store: usize,
        image: Pick,
        value: u32,
    },
    Import {
        store: usize,
        repo: usize,
        bytes: u32,
        qcow2: bool,
        auto: Auto,
    },
    Resize {
        store: usize,
        image: Pick,
        sectors: u16,
    },
    Strategy {
        store: usize,
        image: Pick,
        performance: bool,
    },
    Export {
        store: usize,
        image: Pick,
        qcow2: bool,
    },
    Difference {
        store: usize,
        image: Pick,
        base: Pick,
    },
    /// All fixes.
    Tidy {
        store: usize,
        repo: usize,
    },
    /// One fix, that one store finds and another runs.
    Fix {
        finder: usize,
        store: usize,
        repo: usize,
        pick: Pick,
    },
    /// What a check lists is kept for later.
    Remember {
        store: usize,
        repo: usize,
    },
    /// A fix that was kept.
    Stale {
        store: usize,
        pick: Pick,
    },
    /// Its work is stopped while it runs.
    Stopped(Box<Op>),
    /// A host does it that dies.
    Killed {
        moment: When,
        op: Box<Op>,
    },
    Reconnect {
        store: usize,
        repo: usize,
        force: bool,
    },
}

fn two() -> std::ops::Range<usize> {
    0..2
}

fn auto() -> impl Strategy<Value = Auto> {
    prop_oneof![8 => Just(Auto::On), 1 => Just(Auto::Off), 2 => Just(Auto::Optimized)]
}

fn range() -> impl Strategy<Value = Range> {
    (any::<u16>(), 1_u32..300_000, any::<bool>()).prop_map(|(at, length, aligned)| Range {
        at,
        length,
        aligned,
    })
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![4 => any::<u8>().prop_map(How::Data), 1 => Just(How::Zeroes), 1 => Just(How::Discard)]
}

fn when() -> impl Strategy<Value = When> {
    prop_oneof![2 => (0_u64..20_000).prop_map(When::After), 3 => (0_u64..1000).prop_map(When::Done)]
}

/// Those that move data are the ones to be stopped.
fn moving() -> impl Strategy<Value = Op> {
    let image = || any::<u8>().prop_map(Pick);
    let rarely = || prop::bool::weighted(0.2);
    prop_oneof![
        1 => (two(), two(), image(), prop::option::of(0_u16..300), prop::bool::weighted(0.5), auto())
            .prop_map(|(store, repo, base, grow, performance, auto)| Op::CreateOn { store, repo, base, grow, performance, auto }),
        3 => (two(), two(), image(), rarely(), prop::bool::weighted(0.6), auto())
            .prop_map(|(store, target, image, performance, mutable, auto)| Op::Copy { store, target, image, performance, mutable, auto }),
        3 => (two(), two(), image(), image(), rarely(), prop::bool::weighted(0.6), rarely(), auto())
            .prop_map(|(store, target, image, base, performance, mutable, partial, auto)| {
                Op::CopyOn { store, target, image, base, performance, mutable, partial, auto }
            }),
        1 => (two(), image()).prop_map(|(store, pick)| Op::BringBack { store, pick }),
        1 => (two(), two(), 1_u32..1_500_000, any::<bool>(), auto())
            .prop_map(|(store, repo, bytes, qcow2, auto)| Op::Import { store, repo, bytes, qcow2, auto }),
        3 => fix(),
    ]
}

fn fix() -> impl Strategy<Value = Op> {
    (two(), two(), two(), any::<u8>().prop_map(Pick)).prop_map(|(finder, store, repo, pick)| Op::Fix {
        finder,
        store,
        repo,
        pick,
    })
}

/// Those that a host can die of.
fn deadly() -> impl Strategy<Value = Op> {
    let image = || any::<u8>().prop_map(Pick);
    prop_oneof![
        6 => moving(),
        1 => (two(), two(), 1_u16..8192, any::<bool>(), auto())
            .prop_map(|(store, repo, sectors, performance, auto)| Op::Create { store, repo, sectors, performance, auto }),
        3 => (two(), image()).prop_map(|(store, image)| Op::Snapshot { store, image, auto: Auto::On }),
        2 => (two(), image()).prop_map(|(store, image)| Op::Remove { store, image }),
        1 => (two(), image(), any::<u32>()).prop_map(|(store, image, value)| Op::UserData { store, image, value }),
        1 => (two(), image(), 0_u16..2000).prop_map(|(store, image, sectors)| Op::Resize { store, image, sectors }),
    ]
}

pub fn operation() -> impl Strategy<Value = Op> {
    let image = || any::<u8>().prop_map(Pick);
    let rarely = || prop::bool::weighted(0.2);
    prop_oneof![
        8 => moving().prop_map(|op| Op::Stopped(Box::new(op))),
        7 => (when(), deadly()).prop_map(|(moment, op)| Op::Killed { moment, op: Box::new(op) }),
        5 => fix(),
        2 => (two(), two()).prop_map(|(store, repo)| Op::Remember { store, repo }),
        4 => (two(), image()).prop_map(|(store, pick)| Op::Stale { store, pick }),
        3 => (two(), two(), 1_u16..8192, rarely(), auto())
            .prop_map(|(store, repo, sectors, performance, auto)| Op::Create { store, repo, sectors, performance, auto }),
        4 => (two(), two(), image(), prop::option::of(0_u16..300), rarely(), auto())
            .prop_map(|(store, repo, base, grow, performance, auto)| Op::CreateOn { store, repo, base, grow, performance, auto }),
        6 => (two(), image(), prop_oneof![3 => Just(Auto::On), 2 => Just(Auto::Off)])
            .prop_map(|(store, image, auto)| Op::Snapshot { store, image, auto }),
        5 => (two(), two(), image(), rarely(), prop::bool::weighted(0.6), auto())
            .prop_map(|(store, target, image, performance, mutable, auto)| Op::Copy { store, target, image, performance, mutable, auto }),
        10 => (two(), two(), image(), image(), rarely(), prop::bool::weighted(0.6), any::<bool>(), auto())
            .prop_map(|(store, target, image, base, performance, mutable, partial, auto)| {
                Op::CopyOn { store, target, image, base, performance, mutable, partial, auto }
            }),
        6 => (two(), image()).prop_map(|(store, pick)| Op::BringBack { store, pick }),
        12 => (two(), image(), how(), range()).prop_map(|(store, image, how, range)| Op::Write { store, image, how, range }),
        1 => (two(), image(), range(), any::<u8>()).prop_map(|(store, image, range, byte)| Op::Qemu { store, image, range, byte }),
        3 => (two(), image(), prop::bool::weighted(0.6)).prop_map(|(store, image, writable)| Op::Open { store, image, writable }),
        3 => image().prop_map(|pick| Op::Close { pick }),
        4 => (two(), image()).prop_map(|(store, image)| Op::Remove { store, image }),
        2 => (two(), image(), any::<u32>()).prop_map(|(store, image, value)| Op::UserData { store, image, value }),
        1 => (two(), two(), 1_u32..1_500_000, any::<bool>(), auto())
            .prop_map(|(store, repo, bytes, qcow2, auto)| Op::Import { store, repo, bytes, qcow2, auto }),
        2 => (two(), image(), 0_u16..2000).prop_map(|(store, image, sectors)| Op::Resize { store, image, sectors }),
        1 => (two(), image(), any::<bool>())
            .prop_map(|(store, image, performance)| Op::Strategy { store, image, performance }),
        1 => (two(), image(), any::<bool>()).prop_map(|(store, image, qcow2)| Op::Export { store, image, qcow2 }),
        2 => (two(), image(), image()).prop_map(|(store, image, base)| Op::Difference { store, image, base }),
        5 => (two(), two()).prop_map(|(store, repo)| Op::Tidy { store, repo }),
        1 => (two(), two(), any::<bool>()).prop_map(|(store, repo, force)| Op::Reconnect { store, repo, force }),
    ]
}
