//! The operations that make images.

use vdsmstore_core::options::{AutoFix, CopyOptions};

use crate::operation::{Auto, Op};
use crate::world::{Base, Img, State};
use crate::{NAMES, World, allowed, create_options};
use std::path::{Path, PathBuf};
use vdsmstore_tests::run;

impl World {
    #[expect(clippy::too_many_arguments, reason = "the fields of the operation")]
    pub fn create_on(
        &mut self,
        op: &Op,
        store: usize,
        repo: usize,
        base: &str,
        grow: Option<u16>,
        performance: bool,
        auto: Auto,
    ) -> bool {
        // Half of a repair is no state that this model knows.
        let auto = if self.lost_its_base(repo, base) { Auto::On } else { auto };
        let expected = self.model.disk_base(repo, base);
        let length =
            self.model.repos.iter().find_map(|images| images.get(base)).map_or(512, |image| image.data.len());
        let size = grow.map(|grow| length as i64 + i64::from(grow) * 512);
        let user = self.user();
        let made = self.stores[store].create_virtual_disk(
            NAMES[repo],
            size,
            Some(base),
            &user,
            &create_options(performance, auto),
        );
        self.stores[store].run_tasks();
        let Some(made) = allowed(op, made, &expected) else { return false };
        let source = self.model.repos[expected.unwrap()][base].clone();
        let elsewhere = !self.model.usable(repo, base);
        if elsewhere && !performance {
            let present = self.model.get(repo, base).map(|image| image.state.clone());
            let state = match (auto, present) {
                (Auto::Off, None) => State::Pending { then: Some(Box::new(State::Whole)) },
                (Auto::Off, Some(state)) => state,
                (_, Some(State::Pending { then: Some(then) })) => *then,
                _ => State::Whole,
            };
            let user = self.model.get(repo, base).unwrap_or(&source).user.clone();
            self.model.insert(repo, base.to_owned(), Img { user, state, ..source.clone() });
        }
        let mut data = source.data;
        data.resize(size.map_or(data.len(), |size| size as usize), 0);
        let state = match auto {
            Auto::Off => State::Pending { then: None },
            _ if elsewhere && performance => State::Whole,
            _ => State::Partial { base: base.to_owned() },
        };
        self.model.insert(repo, made.to_string(), Img { disk: true, data, user, state });
        true
    }

    /// None: the operation leads to what the model does not know.
    pub fn copy(
        &mut self,
        op: &Op,
        store: usize,
        target: usize,
        id: &str,
        base: Option<&str>,
        mut options: CopyOptions,
    ) -> Option<bool> {
        let expected = self.model.copy(target, id, base, options.partial);
        let base_of = |(_, base): &(usize, Base)| match base {
            Base::None => (State::Whole, false),
            Base::Disk(disk) => (State::Whole, self.model.is_open(target, disk)),
            Base::Snapshot(id) => {
                (State::Partial { base: id.clone() }, !(0..2).any(|repo| self.model.usable(repo, id)))
            }
        };
        let (then, may_fail) = expected.as_ref().map_or((State::Whole, false), base_of);
        if self.lost_its_base(target, id) {
            if may_fail {
                return None;
            }
            options.auto_fix = AutoFix::On;
        }
        let user = self.user();
        options.task_id = Some(format!("copy-{}", self.serial));
        let copied = self.stores[store].copy_image(NAMES[target], id, base, &user, &options);
        self.stores[store].run_tasks();
        let Some(copied) = allowed(op, copied, &expected) else { return Some(false) };
        let copied = copied.to_string();
        let (repo, base) = expected.unwrap();
        let on = options.auto_fix != AutoFix::Off;
        let outcome =
            if on { self.stores[store].wait_task(options.task_id.as_deref().unwrap(), None) } else { Ok(()) };
        if let Base::Disk(disk) = &base
            && on
        {
            self.model.may_complete(target, disk);
        }
        let source = self.model.repos[repo][id].clone();
        let present = self.model.get(target, id).cloned().filter(|_| !source.disk);
        if let Some(Img { state: State::Pending { then: Some(earlier) }, .. }) = &present {
            // What was announced first is what is done.
            if outcome.is_ok() && on {
                let state = (**earlier).clone();
                self.model.insert(target, copied, Img { state, ..present.unwrap() });
            }
            return Some(outcome.is_ok());
        }
        assert!(may_fail || outcome.is_ok(), "{op:?}: {outcome:?}");
        let failed = outcome.is_err();
        if source.disk {
            let state = if on && !failed { then } else { State::Adrift };
            self.model.insert(target, copied, Img { disk: options.mutable, user, state, ..source });
            return Some(!failed);
        }
        assert_eq!(copied, id, "a snapshot keeps its id");
        match present {
            None => {
                let state = if on && !failed { then } else { State::Pending { then: Some(Box::new(then)) } };
                self.model.insert(target, copied, Img { user, state, ..source });
            }
            Some(present) if self.lost_its_base(target, id) => {
                self.model.insert(target, copied, Img { state: then, ..present });
            }
            Some(_) => {}
        }
        Some(!failed)
    }

    pub fn import(&mut self, op: &Op, store: usize, repo: usize, bytes: u32, qcow2: bool, auto: Auto) {
        let bytes = if qcow2 { bytes.next_multiple_of(512) } else { bytes } as usize;
        let seed = self.serial();
        let block = |i: usize| if i / 50_000 % 3 == 1 { 0 } else { (i as u64 / 100 + seed) as u8 };
        let mut data: Vec<u8> = (0..bytes).map(block).collect();
        let raw = self.root.path().join(format!("import-{seed}.raw"));
        std::fs::write(&raw, &data).unwrap();
        let file = if qcow2 { to_qcow2(&raw) } else { raw };
        let (user, options) = (self.user(), create_options(false, auto));
        let format = if qcow2 { "qcow2" } else { "raw" };
        let id =
            self.stores[store].import_image(NAMES[repo], file.to_str().unwrap(), format, &user, &options);
        self.stores[store].run_tasks();
        let id = allowed(op, id, &Ok(())).unwrap().to_string();
        data.resize(bytes.next_multiple_of(512), 0);
        let state = if auto == Auto::Off { State::Pending { then: None } } else { State::Whole };
        self.model.insert(repo, id, Img { disk: true, data, user, state });
        std::fs::remove_file(&file).unwrap();
    }
}

fn to_qcow2(raw: &Path) -> PathBuf {
    let file = raw.with_extension("qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), file.to_str().unwrap()]);
    file
}
