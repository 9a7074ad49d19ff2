//! The operations that make images.

use std::path::{Path, PathBuf};

use serde_json::json;
use vdsmstore_core::options::{AutoFix, CopyOptions, CreateOptions, Strategy};
use vdsmstore_core::{Error, ErrorKind, Status};
use vdsmstore_tests::run;

use crate::cut::Need;
use crate::operation::{Auto, Op};
use crate::world::{Base, Img, State};
use crate::{NAMES, World, allowed, create_options};

impl World {
    /// Notes what an image needs that was not finished.
    fn broke_off(&mut self, repo: usize, id: &str, needs: Vec<Need>) {
        if !self.is_run() {
            self.needs.insert((repo, id.to_owned()), needs);
        }
    }

    pub fn create(&mut self, op: &Op, store: usize, repo: usize, size: i64, performance: bool, auto: Auto) {
        let user = self.user();
        let (id, whole) = if self.is_killed() {
            let job = json!({ "call": "create", "size": size, "performance": performance, "userData": user });
            let Some((id, whole, _)) = self.made_by_dying_host(repo, job) else { return };
            self.broke_off(repo, &id, Vec::new());
            (id, whole)
        } else {
            let options = create_options(performance, auto);
            let id = self.stores[store].create_virtual_disk(NAMES[repo], Some(size), None, &user, &options);
            self.stores[store].run_tasks();
            (allowed(op, id, &Ok(())).unwrap().to_string(), auto != Auto::Off)
        };
        let state = if whole { State::Whole } else { State::Pending { then: None } };
        self.model.insert(repo, id, Img { disk: true, data: vec![0; size as usize], user, state });
    }

    /// None: it is not for a host that dies.
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
    ) -> Option<bool> {
        // Half of a repair is no state that this model knows.
        let auto = if self.lost_its_base(repo, base) || !self.is_run() { Auto::On } else { auto };
        let expected = self.model.disk_base(repo, base);
        let length =
            self.model.repos.iter().find_map(|images| images.get(base)).map_or(512, |image| image.data.len());
        let size = grow.map(|grow| length as i64 + i64::from(grow) * 512);
        let user = self.user();
        let being_buried = self.model.get(repo, base).is_none() && self.is_absorbed(repo, base);
        let made = if self.is_killed() {
            if being_buried || expected.is_err() {
                return None;
            }
            let job = json!({ "call": "create", "size": size, "base": base, "performance": performance,
                "userData": user });
            self.made_by_dying_host(repo, job).map(|(id, ..)| id)
        } else {
            let mut options = create_options(performance, auto);
            options.bandwidth = self.bandwidth();
            let made = self.stores[store].create_virtual_disk(NAMES[repo], size, Some(base), &user, &options);
            self.work(store);
            if being_buried
                && let Err(error) = &made
                && is_buried(error)
            {
                return Some(false);
            }
            let Some(made) = allowed(op, made, &expected) else { return Some(false) };
            Some(made.to_string())
        };
        let from = expected.unwrap();
        let source = self.model.repos[from][base].clone();
        let elsewhere = !self.model.usable(repo, base);
        if elsewhere && !performance && (self.is_run() || self.look(repo, base).is_some()) {
            let present = self.model.get(repo, base).map(|image| image.state.clone());
            let state = match (auto, present) {
                _ if !self.is_run() && self.is_whole(repo, base) => State::Whole,
                (_, Some(state)) if !self.is_run() => state,
                (_, None) if !self.is_run() => {
                    self.broke_off(repo, base, vec![Need::Snapshot(base.to_owned())]);
                    State::Pending { then: Some(Box::new(State::Whole)) }
                }
                (Auto::Off, None) => State::Pending { then: Some(Box::new(State::Whole)) },
                (Auto::Off, Some(state)) => state,
                // What is copied as a difference to a disk comes once nobody has that open.
                (_, Some(pending @ State::Pending { then: Some(_) }))
                    if self.model.has_open_disk(repo) && !self.is_whole(repo, base) =>
                {
                    pending
                }
                (_, Some(State::Pending { then: Some(then) })) => *then,
                _ => State::Whole,
            };
            let user = self.model.get(repo, base).unwrap_or(&source).user.clone();
            self.model.insert(repo, base.to_owned(), Img { user, state, ..source.clone() });
        }
        let Some(made) = made else { return Some(true) };
        let mut data = source.data;
        data.resize(size.map_or(data.len(), |size| size as usize), 0);
        let state = match auto {
            _ if !self.is_run() && self.is_whole(repo, &made) => State::Whole,
            _ if !self.is_run() => {
                let base = base.to_owned();
                // An overlay reads through its base, which somebody may remove before it has come.
                let copied = elsewhere && performance;
                let need = if copied { Need::Snapshot(base) } else { Need::SnapshotIn(repo, base) };
                self.broke_off(repo, &made, vec![need]);
                State::Pending { then: None }
            }
            Auto::Off => State::Pending { then: None },
            _ if elsewhere && performance => State::Whole,
            _ => State::Partial { base: base.to_owned() },
        };
        self.model.insert(repo, made, Img { disk: true, data, user, state });
        Some(true)
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
        if !self.is_run() && options.auto_fix == AutoFix::Off {
            options.auto_fix = AutoFix::On;
        }
        let user = self.user();
        let named = [Some(id), base].into_iter().flatten();
        let being_buried =
            named.filter(|id| self.model.get(target, id).is_none()).any(|id| self.is_absorbed(target, id));
        let on = options.auto_fix != AutoFix::Off;
        let (copied, done) = if self.is_killed() {
            if being_buried || expected.is_err() {
                return None;
            }
            let is_disk = self.is_disk(id);
            let job = json!({ "call": "copy", "repo": NAMES[target], "image": id, "base": base, "userData": user,
                "performance": options.strategy == Strategy::Performance, "mutable": options.mutable,
                "partial": options.partial, "optimized": options.auto_fix == AutoFix::Optimized });
            if let Ok((_, Base::Disk(disk))) = &expected {
                self.model.may_complete(target, disk);
            }
            if is_disk {
                let (copied, whole, _) = self.made_by_dying_host(target, job)?;
                (copied, whole)
            } else {
                let said = self.by_dying_host(job);
                let there = self.look(target, id);
                assert!(there.is_some() || !said.returned, "snapshot {id} was copied, and is not there");
                (id.to_owned(), there? != Status::Broken)
            }
        } else {
            options.task_id = Some(format!("copy-{}", self.serial));
            options.bandwidth = self.bandwidth();
            let copied = self.stores[store].copy_image(NAMES[target], id, base, &user, &options);
            self.work(store);
            if being_buried
                && let Err(error) = &copied
                && is_buried(error)
            {
                return Some(false);
            }
            let Some(copied) = allowed(op, copied, &expected) else { return Some(false) };
            let task = options.task_id.as_deref().unwrap();
            let outcome = if on { self.stores[store].wait_task(task, None) } else { Ok(()) };
            assert!(
                may_fail || outcome.is_ok() || !self.is_run() || self.model.get(target, id).is_some(),
                "{op:?}: {outcome:?}"
            );
            (copied.to_string(), outcome.is_ok())
        };
        let (repo, base) = expected.unwrap();
        if let Base::Disk(disk) = &base
            && on
        {
            self.model.may_complete(target, disk);
        }
        let source = self.model.repos[repo][id].clone();
        if !done {
            let mut needs = match &base {
                Base::None => Vec::new(),
                Base::Disk(disk) => vec![Need::Disk(target, disk.clone())],
                Base::Snapshot(base) => vec![Need::SnapshotIn(target, base.clone())],
            };
            needs.push(if source.disk {
                Need::Disk(repo, id.to_owned())
            } else {
                Need::Snapshot(id.to_owned())
            });
            self.broke_off(target, &copied, needs);
        }
        let present = self.model.get(target, id).cloned().filter(|_| !source.disk);
        if let Some(Img { state: State::Pending { then: Some(earlier) }, .. }) = &present {
            // What was announced first is what is done.
            if done && on {
                let state = (**earlier).clone();
                self.model.insert(target, copied, Img { state, ..present.unwrap() });
            }
            return Some(done);
        }
        let then = match then {
            _ if done && self.is_killed() => State::Whole,
            // A removed image that is still there comes back with what it is built on.
            State::Partial { base }
                if done && on && self.base(store, target, &copied) != Some(base.clone()) =>
            {
                State::Whole
            }
            then => then,
        };
        if source.disk {
            let state = if on && done {
                then
            } else {
                State::Adrift { repo, source: id.to_owned(), moments: vec![source.data.clone()] }
            };
            self.model.insert(target, copied, Img { disk: options.mutable, user, state, ..source });
            return Some(done);
        }
        assert_eq!(copied, id, "a snapshot keeps its id");
        match present {
            None => {
                let state = if on && done { then } else { State::Pending { then: Some(Box::new(then)) } };
                self.model.insert(target, copied, Img { user, state, ..source });
            }
            Some(present) if done && self.lost_its_base(target, id) => {
                self.model.insert(target, copied, Img { state: then, ..present });
            }
            Some(_) => {}
        }
        Some(done)
    }

    /// What an image is built on.
    fn base(&self, store: usize, repo: usize, id: &str) -> Option<String> {
        let nodes = self.stores[store].graph(NAMES[repo]).unwrap();
        nodes.iter().find(|node| node.image_id.to_string() == id)?.base.map(|base| base.to_string())
    }

    pub fn import(&mut self, op: &Op, store: usize, repo: usize, bytes: u32, qcow2: bool, auto: Auto) {
        let bytes = if qcow2 { bytes.next_multiple_of(512) } else { bytes } as usize;
        let seed = self.serial();
        let block = |i: usize| if i / 50_000 % 3 == 1 { 0 } else { (i as u64 / 100 + seed) as u8 };
        let mut data: Vec<u8> = (0..bytes).map(block).collect();
        let raw = self.root.path().join(format!("import-{seed}.raw"));
        std::fs::write(&raw, &data).unwrap();
        let file = if qcow2 { to_qcow2(&raw) } else { raw };
        let path = file.to_str().unwrap();
        let format = if qcow2 { "qcow2" } else { "raw" };
        let user = self.user();
        let (id, whole) = if self.is_killed() {
            let job = json!({ "call": "import", "path": path, "format": format, "userData": user });
            let Some((id, whole, _)) = self.made_by_dying_host(repo, job) else { return };
            (id, whole)
        } else {
            let auto = if self.is_run() { auto } else { Auto::On };
            let options = CreateOptions { bandwidth: self.bandwidth(), ..create_options(false, auto) };
            let id = self.stores[store].import_image(NAMES[repo], path, format, &user, &options);
            self.work(store);
            let id = allowed(op, id, &Ok(())).unwrap().to_string();
            let whole = if self.is_run() { auto != Auto::Off } else { self.is_whole(repo, &id) };
            (id, whole)
        };
        data.resize(bytes.next_multiple_of(512), 0);
        let state = if whole { State::Whole } else { State::Pending { then: None } };
        if whole || self.is_run() {
            std::fs::remove_file(&file).unwrap();
        } else {
            self.broke_off(repo, &id, Vec::new());
        }
        self.model.insert(repo, id, Img { disk: true, data, user, state });
    }
}

/// The error for an image that is being merged away or buried: another time.
fn is_buried(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ImageInUse | ErrorKind::ImageNotFound)
}

fn to_qcow2(raw: &Path) -> PathBuf {
    let file = raw.with_extension("qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), file.to_str().unwrap()]);
    file
}
