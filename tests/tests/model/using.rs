//! The operations that use images as they are.

use vdsmstore_core::options::{ExportOptions, ForceOptions, ListOptions, PrepareOptions};
use vdsmstore_core::{ErrorKind, ExtentKind, Image};
use vdsmstore_tests::qemu::qemu_io;
use vdsmstore_tests::run;

use crate::operation::{How, Op, Range};
use crate::{NAMES, World, allowed};

impl World {
    pub fn open(&mut self, op: &Op, store: usize, repo: usize, id: &str, writable: bool) -> Option<Image> {
        let expected = if writable { self.model.writable(repo, id) } else { self.model.readable(repo, id) };
        let open = allowed(op, self.stores[store].open_image(NAMES[repo], id, writable), &expected)?;
        if writable {
            self.model.complete(repo, id);
        }
        Some(open)
    }

    pub fn write(&mut self, image: &Image, repo: usize, id: &str, how: How, range: Range) {
        let data = &mut self.model.repos[repo].get_mut(id).unwrap().data;
        let (start, length) = range.of(data.len());
        let bytes = &mut data[start..start + length];
        let (offset, long) = (start as i64, length as i64);
        match how {
            How::Data(seed) => {
                bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = seed.wrapping_add((i / 7) as u8));
                image.write(offset, bytes).unwrap();
            }
            How::Zeroes => {
                bytes.fill(0);
                image.write_zeroes(offset, long).unwrap();
            }
            How::Discard => {
                bytes.fill(0);
                image.discard(offset, long).unwrap();
            }
        }
        if self.model.clones {
            // A clone of this moment is as a crash would leave it: what was flushed is in it.
            image.flush().unwrap();
        }
    }

    pub fn qemu(&mut self, op: &Op, store: usize, repo: usize, id: &str, range: Range, byte: u8) -> bool {
        let expected = self.model.writable(repo, id);
        let options = PrepareOptions { read_only: false };
        let prepared = self.stores[store].prepare_image(NAMES[repo], id, &options);
        let prepared = match prepared {
            // A header below may have to be corrected, and be in use.
            Err(error) if error.kind() == ErrorKind::ImageInUse && !self.handles.is_empty() => return false,
            prepared => allowed(op, prepared, &expected),
        };
        let Some(prepared) = prepared else { return false };
        self.model.complete(repo, id);
        let data = &mut self.model.repos[repo].get_mut(id).unwrap().data;
        let (start, length) = range.of(data.len());
        let (start, end) = (start / 512 * 512, (start + length).next_multiple_of(512));
        data[start..end].fill(byte);
        let command = format!("write -P {byte} {start} {}", end - start);
        let output = qemu_io(&prepared.path, &prepared.format, false, &[&command]);
        assert!(output.status.success(), "{op:?}: {command}: {output:?}");
        self.stores[store].teardown_image(NAMES[repo], id, &ForceOptions::default()).unwrap();
        true
    }

    pub fn close(&mut self, index: usize) {
        let image = self.handles.remove(index);
        self.model.open.remove(index);
        image.close().unwrap();
        assert_eq!(image.read(0, &mut [0]).unwrap_err().kind(), ErrorKind::Closed);
    }

    pub fn reconnect(&mut self, op: &Op, store: usize, repo: usize, force: bool) -> bool {
        let mine: Vec<usize> = (0..self.handles.len())
            .filter(|&i| self.model.open[i].store == store && self.model.open[i].repo == repo)
            .collect();
        let expected = if mine.is_empty() || force { Ok(()) } else { Err(vec![ErrorKind::ImageInUse]) };
        let done = self.stores[store].disconnect_storage_repository(NAMES[repo], &ForceOptions { force });
        if allowed(op, done, &expected).is_none() {
            return false;
        }
        for index in mine.into_iter().rev() {
            self.close(index);
        }
        let gone = self.stores[store].list_images(NAMES[repo], &ListOptions::default()).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::RepositoryNotFound);
        self.connect(store, repo);
        true
    }

    pub fn export(&mut self, op: &Op, store: usize, repo: usize, id: &str, qcow2: bool) -> bool {
        let expected = self.model.pinnable(repo, id);
        let (name, format) = (self.serial(), if qcow2 { "qcow2" } else { "raw" });
        let file = self.root.path().join(format!("export-{name}"));
        let path = file.to_str().unwrap();
        let task = self.stores[store].export_image(NAMES[repo], id, path, format, &ExportOptions::default());
        let Some(task) = allowed(op, task, &expected) else { return false };
        self.stores[store].run_tasks();
        self.stores[store].wait_task(&task, None).unwrap();
        let data = &self.model.repos[repo][id].data;
        if qcow2 {
            let wanted = self.root.path().join("expected.raw");
            std::fs::write(&wanted, data).unwrap();
            run("qemu-img", &["check", "-f", "qcow2", path]);
            run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", path, wanted.to_str().unwrap()]);
        } else {
            assert!(std::fs::read(&file).unwrap() == *data, "the export of {id}");
        }
        std::fs::remove_file(&file).unwrap();
        true
    }

    /// What differs between two images of a repository: everything that does is told.
    pub fn difference(&mut self, op: &Op, store: usize, repo: usize, id: &str, base: &str) -> bool {
        let expected = match (self.model.pinnable(repo, id), self.model.pinnable(repo, base)) {
            (Ok(()), Ok(())) => Ok(()),
            (one, other) => Err([one.err().unwrap_or_default(), other.err().unwrap_or_default()].concat()),
        };
        let found = self.stores[store].diff_images(NAMES[repo], id, Some(base));
        let Some(mut found) = allowed(op, found, &expected) else { return false };
        let (data, mut old) = (&self.model.repos[repo][id].data, self.model.repos[repo][base].data.clone());
        old.resize(data.len(), 0);
        let mut position = 0;
        loop {
            let batch = found.next_batch(3).unwrap();
            for extent in &batch {
                let (start, end) = (extent.offset as usize, (extent.offset + extent.length) as usize);
                assert!(start >= position && end <= data.len(), "{op:?}: {extent:?} out of order");
                assert!(
                    data[position..start] == old[position..start],
                    "{op:?}: a difference before {extent:?} is not told"
                );
                let zero = data[start..end].iter().all(|byte| *byte == 0);
                assert!(extent.kind != ExtentKind::Zero || zero, "{op:?}: {extent:?} is not zero");
                position = end;
            }
            if batch.is_empty() {
                break;
            }
        }
        assert!(data[position..] == old[position..], "{op:?}: a difference at the end is not told");
        true
    }
}
