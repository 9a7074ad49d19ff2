//! The simulated driver: the contract of all drivers, and its own power cuts.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod driver;

use std::collections::BTreeSet;

use driver::{clones, contract, host, image, kind};
use vdsmstore_core::ErrorKind;
use vdsmstore_core::id::{BlobId, ImageId, VolumeId};
use vdsmstore_core::repository::{Access, CopyOnWrite, Liveness, Marker, Put, QemuUse, Read, RecordKey};
use vdsmstore_core::sim::{SimOptions, SimWorld, Unknown};

fn world() -> SimWorld {
    SimWorld::new(SimOptions::default())
}

#[test]
fn keeps_the_contract() {
    let world = world();
    contract(&|host| world.connect(host));
}

#[test]
fn clones_where_it_can() {
    let world = SimWorld::new(SimOptions { reflink: true, ..SimOptions::default() });
    clones(&|host| world.connect(host));
    let driver = self::world().connect(host("a"));
    assert_eq!(driver.copy_on_write(), CopyOnWrite::Overlay);
    let source = driver.create_volume(VolumeId::random()).unwrap();
    assert_eq!(
        kind(driver.clone_volume(&source, VolumeId::random(), &|| Ok(()))),
        ErrorKind::UnsupportedOperation
    );
}

#[test]
fn qemu_is_respected() {
    let world = world();
    let driver = world.connect(host("a"));
    let volume = VolumeId::random();
    drop(driver.create_volume(volume).unwrap());
    let allowed = |qemu| {
        world.set_qemu(volume, qemu);
        [Access::Read, Access::ReadStill, Access::Write, Access::Lease]
            .map(|access| driver.open_volume(volume, access).is_ok())
    };
    assert_eq!(allowed(QemuUse { writing: true, open: true }), [true, false, false, true]);
    assert_eq!(allowed(QemuUse { writing: false, open: true }), [true, true, false, true]);
    assert_eq!(allowed(QemuUse::default()), [true; 4]);
}

/// Each single step of an operation: what was done before the cut is visible, nothing after it happens.
#[test]
fn every_step_can_be_the_last() {
    let key = image();
    let mut seen = BTreeSet::new();
    for steps in 0..=10 {
        for keep in [false, true] {
            let world = world();
            let me = host("a");
            let driver = world.connect(me.clone());
            let (of, volume) = (ImageId::random(), VolumeId::random());
            world.power(me.incarnation).cut_after(Some(steps));
            let work = || -> vdsmstore_core::Result<()> {
                driver.mark(Marker::Child(of, volume))?; // steps 1, 2
                assert_eq!(driver.put(key, None, b"1")?, Put::Done(1)); // 3, 4
                let open = driver.create_volume(volume)?; // 5, 6
                open.device.write_at(0, &[9; 512])?; // 7
                open.device.flush()?; // 8
                assert_eq!(driver.put(key, Some(1), b"2")?, Put::Done(2)); // 9, 10
                Ok(())
            };
            let result = work();
            assert_eq!(result.is_ok(), steps >= 10);
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::IoError);
                assert!(error.message().contains("power is off"), "{error}");
                assert_eq!(kind(driver.get(key, Read::Fresh)), ErrorKind::IoError);
            }
            world.crash(me.incarnation, &mut || keep);
            let other = world.connect(host("b"));
            let had = |durable| steps >= durable || (keep && steps >= durable - 1);
            assert_eq!(!other.children(of).unwrap().is_empty(), had(2));
            let record = other.get(key, Read::Relaxed).unwrap().map(|record| record.generation);
            assert_eq!(record, if had(10) { Some(2) } else { had(4).then_some(1) });
            assert_eq!(other.volume_exists(volume).unwrap(), had(6));
            if had(6) {
                let bytes = world.bytes(volume).unwrap();
                assert_eq!(bytes, if had(8) { vec![9; 512] } else { Vec::new() }, "{steps} {keep}");
                // The lock of the dead is gone.
                drop(other.open_volume(volume, Access::Write).unwrap());
            }
            assert_eq!(other.liveness(me.incarnation).unwrap(), Liveness::CertainlyDead);
            seen.insert((steps, keep, record));
        }
    }
    assert_eq!(seen.len(), 22);
}

#[test]
fn a_fresh_read_makes_what_it_saw_durable() {
    for read in [Read::Relaxed, Read::Fresh] {
        let world = world();
        let (writer, reader) = (host("a"), host("b"));
        let (a, b) = (world.connect(writer.clone()), world.connect(reader));
        let key = image();
        world.power(writer.incarnation).cut_after(Some(1));
        assert!(a.put(key, None, b"1").is_err());
        assert_eq!(b.get(key, read).unwrap().unwrap().bytes, b"1", "visible");
        world.crash(writer.incarnation, &mut || false);
        assert_eq!(b.get(key, Read::Relaxed).unwrap().is_some(), read == Read::Fresh);
    }
}

#[test]
fn a_put_upon_what_is_not_durable_makes_it_durable() {
    let world = world();
    let writer = host("a");
    let (a, b) = (world.connect(writer.clone()), world.connect(host("b")));
    let key = image();
    world.power(writer.incarnation).cut_after(Some(1));
    assert!(a.put(key, None, b"1").is_err());
    assert_eq!(b.put(key, Some(1), b"2").unwrap(), Put::Done(2));
    world.crash(writer.incarnation, &mut || false);
    assert_eq!(b.get(key, Read::Fresh).unwrap().unwrap().generation, 2);
}

#[test]
fn what_is_removed_may_come_back_until_the_next_durable_change() {
    for later in [false, true] {
        let world = world();
        let me = host("a");
        let a = world.connect(me.clone());
        let (of, volume, blob) = (ImageId::random(), VolumeId::random(), BlobId::random());
        a.mark(Marker::Holder(volume, of)).unwrap();
        a.put_blob(of, blob, b"x").unwrap();
        a.unmark(Marker::Holder(volume, of)).unwrap();
        a.delete_blob(of, blob).unwrap();
        assert_eq!((world.markers(), world.blobs()), (vec![], vec![]));
        if later {
            assert_eq!(a.put(image(), None, b"x").unwrap(), Put::Done(1));
        }
        world.crash(me.incarnation, &mut || false);
        assert_eq!(world.markers().is_empty(), later);
        assert_eq!(world.blobs().is_empty(), later);
    }
}

#[test]
fn unknown_puts_happen_or_not() {
    for outcome in [Unknown::Lost, Unknown::Done] {
        let world = world();
        let driver = world.connect(host("a"));
        let key = image();
        world.inject_unknown(1, outcome);
        assert_eq!(driver.put(image(), None, b"0").unwrap(), Put::Done(1));
        assert_eq!(driver.put(key, None, b"1").unwrap(), Put::Unknown);
        assert_eq!(driver.get(key, Read::Fresh).unwrap().is_some(), outcome == Unknown::Done);
        assert_eq!(driver.put(image(), None, b"0").unwrap(), Put::Done(1));
    }
}

#[test]
fn a_snapshot_is_a_world_of_its_own() {
    let world = world();
    let me = host("a");
    let a = world.connect(me.clone());
    let (key, volume) = (image(), VolumeId::random());
    assert_eq!(a.put(key, None, b"1").unwrap(), Put::Done(1));
    let open = a.create_volume(volume).unwrap();
    open.device.write_at(0, b"one").unwrap();
    world.power(me.incarnation).cut_after(Some(1));
    assert!(a.put(key, Some(1), b"2").is_err());

    let branches = [(false, 1), (true, 2)].map(|(keep, generation)| (world.snapshot(), keep, generation));
    for (branch, keep, generation) in branches {
        let b = branch.connect(host("b"));
        assert_eq!(b.repository_nonce(), a.repository_nonce());
        assert_eq!(b.liveness(me.incarnation).unwrap(), Liveness::Alive);
        assert_eq!(kind(b.open_volume(volume, Access::Read)), ErrorKind::ImageInUse);
        branch.crash(me.incarnation, &mut || keep);
        assert_eq!(b.get(key, Read::Fresh).unwrap().unwrap().generation, generation);
        let mine = b.open_volume(volume, Access::Write).unwrap();
        mine.device.write_at(0, b"two").unwrap();
        assert_eq!(branch.bytes(volume).unwrap(), b"two");
        assert_eq!(branch.objects(), [volume]);
        assert_eq!(branch.records(), [key]);
    }
    assert_eq!(world.bytes(volume).unwrap(), b"one");
    assert_eq!(world.records(), [key]);
}

#[test]
fn one_host_keeps_what_another_loses() {
    let world = SimWorld::new(SimOptions { death: Liveness::LikelyDead, ..SimOptions::default() });
    let (first, second) = (host("a"), host("b"));
    let (a, b) = (world.connect(first.clone()), world.connect(second));
    let (mine, theirs) = (VolumeId::random(), VolumeId::random());
    let (one, two) = (a.create_volume(mine).unwrap(), b.create_volume(theirs).unwrap());
    one.device.write_at(0, &[1; 512]).unwrap();
    two.device.write_at(0, &[2; 512]).unwrap();
    let lock = b.lock_image(ImageId::random()).unwrap().unwrap();
    world.crash(first.incarnation, &mut || false);
    assert!(world.bytes(mine).unwrap().is_empty());
    assert_eq!(world.bytes(theirs).unwrap(), [2; 512]);
    assert!(one.device.write_at(0, &[1; 512]).is_err());
    two.device.flush().unwrap();
    assert_eq!(b.liveness(first.incarnation).unwrap(), Liveness::LikelyDead);
    assert_eq!(kind(b.open_volume(theirs, Access::Read)), ErrorKind::ImageInUse);
    assert_eq!(b.put(RecordKey::Volume(mine), None, b"x").unwrap(), Put::Done(1));
    drop((lock, one));
}

#[test]
fn each_registration_is_swept_in_a_step() {
    for (death, left) in [(Liveness::CertainlyDead, 2), (Liveness::LikelyDead, 0)] {
        let world = SimWorld::new(SimOptions { death, ..SimOptions::default() });
        let dead = [host("a"), host("b")];
        for host in &dead {
            let _driver = world.connect(host.clone());
            world.crash(host.incarnation, &mut || false);
        }
        let (me, other) = (host("c"), host("d"));
        let (driver, other) = (world.connect(me.clone()), world.connect(other));
        assert_eq!(driver.leftovers().unwrap(), left * 4096);
        world.power(me.incarnation).cut_after(Some(1));
        assert_eq!(driver.sweep().is_err(), left > 0);
        assert_eq!(other.leftovers().unwrap(), left / 2 * 4096);
        other.sweep().unwrap();
        assert_eq!(other.leftovers().unwrap(), 0);
        for host in dead {
            assert_eq!(other.liveness(host.incarnation).unwrap(), death);
            assert_eq!(other.host_record(host.incarnation).unwrap().is_none(), left > 0);
        }
    }
}
