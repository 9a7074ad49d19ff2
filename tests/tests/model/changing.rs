//! The operations that change images, or what there is of them.

use serde_json::json;
use vdsmstore_core::ErrorKind;
use vdsmstore_core::options::{RemoveOptions, ResizeOptions};

use crate::operation::{Auto, Op};
use crate::world::{Img, State};
use crate::{NAMES, World, allowed, create_options};

impl World {
    pub fn snapshot(&mut self, op: &Op, store: usize, repo: usize, id: &str, auto: Auto) -> Option<bool> {
        let expected = self.model.snapshot(repo, id);
        let user = self.user();
        let at_once = self.model.is_cloned_while_written(repo, id);
        let announced = |may, sure| State::Announced { disk: id.to_owned(), may, sure };
        if self.is_killed() {
            let data = expected.ok()?;
            let job = json!({ "call": "snapshot", "image": id, "userData": user });
            let made = self.made_by_dying_host(repo, job);
            self.model.may_complete(repo, id);
            if let Some((made, whole, returned)) = made {
                assert!(whole || !returned, "a snapshot that was returned is not there");
                let state = match (whole, at_once) {
                    (true, _) => State::Whole,
                    // Nobody was told of its moment: it is that of whoever completes it.
                    (false, true) => {
                        State::Adrift { repo, source: id.to_owned(), moments: vec![data.clone()] }
                    }
                    (false, false) => announced(true, returned),
                };
                self.model.insert(repo, made, Img { disk: false, data, user, state });
            }
            return Some(true);
        }
        let options = create_options(false, auto);
        let made = self.stores[store].create_snapshot(NAMES[repo], id, &user, &options);
        self.stores[store].run_tasks();
        let made = allowed(op, made, &expected);
        if let (Some(made), Ok(data)) = (&made, expected) {
            let state = if auto == Auto::Off && !at_once {
                announced(false, true)
            } else {
                self.model.complete(repo, id);
                State::Whole
            };
            self.model.insert(repo, made.to_string(), Img { disk: false, data, user, state });
        }
        Some(made.is_some())
    }

    pub fn remove(&mut self, op: &Op, store: usize, repo: usize, id: &str) -> Option<bool> {
        if self.is_killed() {
            // The host that dies is neither of the two.
            self.model.remove(2, repo, id).ok()?.then_some(())?;
            let said = self.by_dying_host(json!({ "call": "remove", "repo": NAMES[repo], "image": id }));
            let there = self.look(repo, id).is_some();
            assert!(!there || !said.returned, "{id} was removed, and is still there");
            if !there {
                // What was announced of a disk is completed by whoever comes next.
                self.model.may_complete(repo, id);
                self.gone(repo, id);
            }
            return Some(!there);
        }
        let expected = self.model.remove(store, repo, id);
        let removed = self.stores[store].remove_image(NAMES[repo], id, &RemoveOptions::default());
        self.stores[store].run_tasks();
        let done = match (removed, expected) {
            (Err(error), Ok(false)) if error.kind() == ErrorKind::ImageInUse => false,
            (removed, expected) => allowed(op, removed, &expected).is_some(),
        };
        if done {
            self.model.complete(repo, id);
            self.gone(repo, id);
        }
        Some(done)
    }

    fn gone(&mut self, repo: usize, id: &str) {
        self.model.repos[repo].remove(id);
        self.model.removed.push((repo, id.to_owned()));
        self.needs.remove(&(repo, id.to_owned()));
    }

    pub fn set_user_data(
        &mut self,
        op: &Op,
        store: usize,
        repo: usize,
        id: &str,
        value: u32,
    ) -> Option<bool> {
        let expected = self.model.get(repo, id).map(drop).ok_or(vec![ErrorKind::ImageNotFound]);
        let user = format!("[{value}, 1.50]");
        let done = if self.is_killed() {
            expected.ok()?;
            let job = json!({ "call": "user data", "repo": NAMES[repo], "image": id, "userData": user });
            let said = self.by_dying_host(job);
            let info = self.stores[store].get_image_info(NAMES[repo], id).unwrap();
            let done = info.user_data.get() == user;
            assert!(done || !said.returned, "{id}: {said:?}, and its user data is {:?}", info.user_data);
            done
        } else {
            let done = self.stores[store].set_image_user_data(NAMES[repo], id, &user);
            allowed(op, done, &expected).is_some()
        };
        if done && let Some(image) = self.model.repos[repo].get_mut(id) {
            image.user = user;
        }
        Some(done)
    }

    pub fn resize(&mut self, op: &Op, store: usize, repo: usize, id: &str, sectors: u16) -> Option<bool> {
        let expected = self.model.growable(repo, id);
        let former = self.model.get(repo, id).map_or(512, |image| image.data.len());
        let size = former + usize::from(sectors) * 512;
        let done = if self.is_killed() {
            expected.ok()?;
            let job = json!({ "call": "resize", "repo": NAMES[repo], "image": id, "size": size });
            let said = self.by_dying_host(job);
            let now = self.stores[store].get_image_info(NAMES[repo], id).unwrap().size as usize;
            assert!(now == size || now == former && !said.returned, "{id}: {said:?}, and it has {now} bytes");
            self.model.may_complete(repo, id);
            now == size
        } else {
            let options = ResizeOptions::default();
            let done = self.stores[store].resize_virtual_disk(NAMES[repo], id, size as i64, &options);
            allowed(op, done, &expected).is_some()
        };
        if done && let Some(image) = self.model.repos[repo].get_mut(id) {
            image.data.resize(size, 0);
            self.model.may_complete(repo, id);
        }
        Some(done)
    }
}
