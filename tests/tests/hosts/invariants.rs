//! The invariants of `docs/engine.md`, section 11, as far as they can be read from what is stored. What cannot is judged
//! where it happens: I1 to I3 by the model, I18 by running all fixes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;
use vdsmstore_core::id::VolumeId;
use vdsmstore_core::repository::RecordKey;
use vdsmstore_core::sim::SimWorld;
use vdsmstore_io::device::sim::{Power, SimDevice, SimStorage};
use vdsmstore_io::{Device, Format, Image, Layer, qcow2};

use crate::raw::{Raw, base_of, text};

/// Over how many volumes an image may be spread.
const DEPTH: usize = 250;

/// A repository at one moment.
#[derive(Clone, Debug)]
pub struct Moment {
    pub raw: Raw,
    pub generations: BTreeMap<RecordKey, u64>,
    pub trespasses: Vec<String>,
    /// Of the volumes that progress names.
    pub durable: BTreeMap<String, Vec<u8>>,
}

impl Moment {
    pub fn new(raw: Raw, world: &SimWorld) -> Moment {
        let named = raw.progress.values().filter_map(|progress| progress["volume"].as_str());
        let durable = named.filter_map(|id| {
            let bytes = world.durable_bytes(VolumeId(Uuid::parse_str(id).ok()?))?;
            Some((id.to_owned(), bytes))
        });
        let durable = durable.collect();
        let (generations, trespasses) = (world.generations().into_iter().collect(), world.trespasses());
        Moment { raw, generations, trespasses, durable }
    }

    /// Every invariant that does not hold, with its number. `before`: an earlier moment.
    pub fn violations(&self, before: Option<&Moment>) -> Vec<String> {
        let mut found = Vec::new();
        self.images(before, &mut found);
        self.volumes(&mut found);
        self.watermarks(&mut found);
        if let Some(before) = before {
            self.since(before, &mut found);
        }
        found.extend(self.trespasses.iter().map(|what| format!("I10: {what}")));
        found
    }

    fn images(&self, before: Option<&Moment>, found: &mut Vec<String>) {
        let raw = &self.raw;
        // Of what lost its volume, to begin with, only the tag can go.
        let lost = |id: &String| {
            let was = before.and_then(|before| Some((before.raw.images.get(id)?, &before.raw)));
            was.is_some_and(|(was, raw)| was["state"] == "pending" && raw.volume_of(id).is_none())
        };
        for (id, image) in &raw.images {
            let state = text(&image["state"]);
            let volume = raw.volume_of(id);
            if state == "live" && volume.is_none_or(|volume| volume["state"] != "ready") {
                found.push(format!("I4: image {id} is live on {volume:?}"));
            }
            if matches!(state, "live" | "removed")
                && volume.is_none_or(|volume| volume["state"] == "doomed")
                && !(state == "removed" && lost(id))
            {
                found.push(format!("I4: image {id} is {state} on {volume:?}"));
            }
            for field in ["volume", "next"] {
                let Some(volume) = image[field].as_str().filter(|_| state != "absorbed") else { continue };
                if raw.volumes.contains_key(volume) && !raw.holders.contains(&(volume.to_owned(), id.clone()))
                {
                    found.push(format!("I6: no marker says that image {id} holds volume {volume}"));
                }
            }
            if image["freeze"].as_array().is_some_and(|list| !list.is_empty()) && !image["open"].is_null() {
                found.push(format!("I11: image {id} is to be frozen and is open"));
            }
        }
    }

    fn volumes(&self, found: &mut Vec<String>) {
        let raw = &self.raw;
        for (id, volume) in &raw.volumes {
            let Some(base) = base_of(volume).filter(|_| volume["state"] != "doomed") else { continue };
            if !raw.children.contains(&(base.to_owned(), id.clone())) {
                found.push(format!("I6: no marker says that volume {id} is built on image {base}"));
            }
            let on = raw.images.get(base);
            if volume["state"] == "ready"
                && on.is_some_and(|on| on["kind"] == "disk" && on["state"] == "live")
            {
                found.push(format!("I8: volume {id} is built on the disk {base}"));
            }
            if self.depth(id) > DEPTH {
                found.push(format!("I8: volume {id} is too deep, or built on itself"));
            }
            if let Some(named) = volume["mirror"].as_str().filter(|_| volume["state"] == "ready")
                && !self.raw.held_by(id).is_empty()
                && self.is_whole(base)
                && !raw.volumes.contains_key(named)
            {
                found.push(format!("I15: the header of volume {id} names {named}, which is not there"));
            }
            self.header(id, volume, found);
        }
        // One that nobody points at is garbage that a late host made.
        for id in raw.objects.keys().filter(|id| !raw.volumes.contains_key(*id)) {
            if !raw.held_by(id).is_empty() {
                found.push(format!("I7: object {id} has no record"));
            }
        }
    }

    /// The watermarks that whoever goes on would believe: image, volume, how much of it.
    pub fn believed(&self) -> impl Iterator<Item = (&String, &String, u64)> {
        let raw = &self.raw;
        raw.progress.iter().filter_map(|(id, progress)| {
            let (volume_id, volume) = raw.volumes.get_key_value(text(&progress["volume"]))?;
            let image = raw.images.get(id)?;
            let is_merge = text(&progress["stage"]).starts_with("merge");
            let goes_on = match text(&volume["state"]) {
                "filling" => [&image["volume"], &image["next"]].contains(&&volume["id"]),
                "ready" => is_merge && self.is_of_a_line(image, &progress["sourceToken"]),
                _ => false,
            };
            let watermark = progress["watermark"].as_u64()?;
            let believed = goes_on && progress["epoch"] == volume["epoch"] && watermark > 0;
            believed.then_some((id, volume_id, watermark))
        })
    }

    /// The watermark of a merge is bound to the token of the image that stays, and to the volumes at both ends of the line.
    fn is_of_a_line(&self, image: &Value, token: &Value) -> bool {
        let number = |id: &str| Uuid::parse_str(id).map_or(0, |id| id.as_u128());
        let upper = number(text(&image["token"])) ^ number(text(&image["volume"]));
        self.raw.volumes.keys().any(|lowest| upper ^ number(lowest) == number(text(token)))
    }

    /// What is below a watermark is durable: reads the same when all hosts have lost power.
    fn watermarks(&self, found: &mut Vec<String>) {
        for (image, id, watermark) in self.believed() {
            let format = text(&self.raw.volumes[id]["format"]);
            let read = |bytes: Option<&Vec<u8>>| below(bytes?, format, watermark);
            let durable = read(self.durable.get(id));
            if durable.is_none() || durable != read(self.raw.objects.get(id)) {
                found.push(format!(
                    "I13: not all of volume {id} of image {image} below {watermark} is durable"
                ));
            }
        }
    }

    /// What the header names is what the record says, but while somebody changes it.
    fn header(&self, id: &str, volume: &Value, found: &mut Vec<String>) {
        // Of one that is built on something and does not say what it names, a check says that it is to be corrected.
        let unsettled = volume["state"] != "ready"
            || volume["format"] != "qcow2"
            || !volume["writer"].is_null()
            || volume["mirror"].is_null() && base_of(volume).is_some();
        let Some(bytes) = self.raw.objects.get(id).filter(|_| !unsettled) else { return };
        let device = SimDevice::new(SimStorage::new(0, 0), Power::new(), id.to_owned(), true);
        let first = &bytes[..bytes.len().min(1 << 16)];
        let written = device.set_len(bytes.len() as u64).and_then(|()| device.write_at(0, first));
        let read = written.and_then(|()| qcow2::info(&device));
        match read {
            Err(error) => found.push(format!("I15: the header of volume {id}: {error}")),
            Ok(info) => {
                let named = info.backing.as_deref().unwrap_or_default();
                // A base that is not here yet is named by its image.
                let absent = volume["mirror"].is_null() && Some(named) == base_of(volume);
                if named != text(&volume["mirror"]) && !absent && !self.raw.held_by(id).is_empty() {
                    found.push(format!("I15: the header of volume {id} names {named:?}: {volume}"));
                }
            }
        }
    }

    /// Whether what is built on the image can be read.
    fn is_whole(&self, image: &str) -> bool {
        let mut next = Some(image);
        for _ in 0..DEPTH {
            let Some(image) = next else { return true };
            let there = |image: &&Value| matches!(text(&image["state"]), "live" | "removed");
            let image = self.raw.images.get(image).filter(there);
            let volume = image.and_then(|image| self.raw.volumes.get(text(&image["volume"])));
            let Some(volume) = volume.filter(|volume| volume["state"] == "ready") else { return false };
            next = base_of(volume);
        }
        false
    }

    fn depth(&self, volume: &str) -> usize {
        let mut depth = 1;
        let mut next = self.raw.volumes.get(volume);
        while let Some(volume) = next {
            let base = base_of(volume).and_then(|base| self.raw.images.get(base));
            next = base.and_then(|base| self.raw.volumes.get(text(&base["volume"])));
            depth += 1;
            if depth > DEPTH + 1 {
                break;
            }
        }
        depth
    }

    fn since(&self, before: &Moment, found: &mut Vec<String>) {
        for (key, was) in &before.generations {
            match self.generations.get(key) {
                Some(is) if is >= was => {}
                is => found.push(format!("I5: the generation of {key:?} went from {was} to {is:?}")),
            }
        }
        let same = |was: &Value, is: &Value| was["stored"] != is["stored"] || was == is;
        for (all, old) in [(&self.raw.images, &before.raw.images), (&self.raw.volumes, &before.raw.volumes)] {
            for (id, was) in old {
                if all.get(id).is_some_and(|is| !same(was, is)) {
                    found.push(format!("I5: {id} has two contents of one generation"));
                }
            }
        }
        for (id, was) in &before.raw.volumes {
            let is = self.raw.volumes.get(id);
            if was["state"] == "ready" && is.is_some_and(|is| is["state"] == "filling") {
                found.push(format!("I4: volume {id} was ready and is filled again"));
            }
        }
        for (id, was) in before.raw.images.iter().filter(|(_, was)| was["kind"] == "disk") {
            let written = |moment: &Moment| moment.raw.images.get(id).map(|image| image["open"].clone());
            let same_token = self.raw.images.get(id).is_some_and(|is| is["token"] == was["token"]);
            if same_token
                && written(before).is_some_and(|open| open.is_null())
                && written(self).is_some_and(|open| !open.is_null())
            {
                found.push(format!("I12: disk {id} is open for writing with the token that it had before"));
            }
        }
    }
}

/// The beginning of a volume, without what shows through it; None: it cannot be read.
fn below(bytes: &[u8], format: &str, length: u64) -> Option<Vec<u8>> {
    let device = SimDevice::new(SimStorage::new(0, 0), Power::new(), String::new(), true);
    device.set_len(bytes.len() as u64).and_then(|()| device.write_at(0, bytes)).ok()?;
    let format = if format == "qcow2" { Format::Qcow2 } else { Format::Raw };
    let layer = Layer { device: Arc::new(device), format, size: length };
    let image = Image::open(vec![layer], false).ok()?;
    let mut data = vec![0; usize::try_from(length).ok()?];
    image.read(0, &mut data).ok()?;
    Some(data)
}
