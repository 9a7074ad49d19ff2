//! Which repositories there are: `--repo` and the config file.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vdsmstore_core::{Error, ErrorKind, Result};

/// A repository as the user gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct RepoSpec {
    /// The user's name for it.
    pub name: String,
    /// `name-major.minor`.
    pub format: String,
    /// The parameters of its connection.
    pub parameters: Map<String, Value>,
    /// Whether it was given on the command line, not just listed in a config file.
    pub explicit: bool,
}

impl RepoSpec {
    /// Where it is, for people.
    pub fn location(&self) -> String {
        let text = |key| self.parameters.get(key).and_then(Value::as_str);
        match (text("path"), text("server"), text("export")) {
            (Some(path), ..) => path.to_owned(),
            (_, Some(server), Some(export)) => format!("{server}:{export}"),
            _ => Value::Object(self.parameters.clone()).to_string(),
        }
    }
}

impl FromStr for RepoSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let form = || "NAME=FORMAT:LOCATION is needed, such as A=localfs-1.0:/srv/images".to_owned();
        let (name, rest) = text.split_once('=').ok_or_else(form)?;
        let (format, location) = rest.split_once(':').ok_or_else(form)?;
        if name.is_empty() || format.is_empty() || location.is_empty() {
            return Err(form());
        }
        let parameters = parameters(format, location)?;
        Ok(Self { name: name.to_owned(), format: format.to_owned(), parameters, explicit: true })
    }
}

/// The connection parameters that a location stands for.
fn parameters(format: &str, location: &str) -> std::result::Result<Map<String, Value>, String> {
    let kind = format.split('-').next().unwrap_or(format);
    let value = match (kind, location.split_once(':')) {
        ("nfs", Some((server, export))) => json!({ "server": server, "export": export }),
        ("clvm", _) => json!({ "vg": location }),
        ("rbd", _) => match location.split_once('/') {
            Some((pool, namespace)) => json!({ "pool": pool, "namespace": namespace }),
            None => json!({ "pool": location }),
        },
        _ => {
            let path = std::path::absolute(location).map_err(|error| error.to_string())?;
            let path = path.to_str().ok_or("the path is not UTF-8")?;
            json!({ "path": path })
        }
    };
    match value {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    repositories: Map<String, Value>,
}

/// Those of the command line in their order, then those of the config file whose names are not taken.
pub fn repositories(given: &[RepoSpec]) -> Result<Vec<RepoSpec>> {
    let mut all: Vec<RepoSpec> = Vec::new();
    for spec in given {
        if all.iter().any(|other| other.name == spec.name) {
            return Err(usage(format!("--repo: the name {:?} is given twice", spec.name)));
        }
        all.push(spec.clone());
    }
    if let Some((path, text)) = config_file()? {
        for spec in parse(&path, &text)? {
            if !all.iter().any(|other| other.name == spec.name) {
                all.push(spec);
            }
        }
    }
    Ok(all)
}

/// The config file that counts, and its text.
fn config_file() -> Result<Option<(PathBuf, String)>> {
    if let Some(path) = env::var_os("VDSMSTORE_CONFIG") {
        let path = PathBuf::from(path);
        return if path.as_os_str().is_empty() { Ok(None) } else { read(path, true) };
    }
    let home = env::var_os("HOME").filter(|home| !home.is_empty());
    if let Some(home) = home
        && let Some(found) = read(Path::new(&home).join(".config/vdsmstore.toml"), false)?
    {
        return Ok(Some(found));
    }
    read(PathBuf::from("/etc/vdsmstore.toml"), false)
}

fn read(path: PathBuf, needed: bool) -> Result<Option<(PathBuf, String)>> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !needed => Ok(None),
        Err(error) => Err(usage(format!("config file {}: {error}", path.display())).because(error)),
    }
}

fn parse(path: &Path, text: &str) -> Result<Vec<RepoSpec>> {
    let bad = |reason: String| usage(format!("config file {}: {reason}", path.display()));
    let file: File = toml::from_str(text).map_err(|error| bad(error.to_string().trim_end().to_owned()))?;
    file.repositories
        .into_iter()
        .map(|(name, value)| {
            let Value::Object(mut parameters) = value else {
                return Err(bad(format!("repositories.{name} is not a table")));
            };
            let Some(Value::String(format)) = parameters.shift_remove("format") else {
                return Err(bad(format!("repositories.{name} has no format, such as \"localfs-1.0\"")));
            };
            Ok(RepoSpec { name, format, parameters, explicit: false })
        })
        .collect()
}

/// An error of what the user typed.
pub fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidParameter, message).with("usage", true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_parsed() {
        let spec: RepoSpec = "A=localfs-1.0:/srv/a=b:c".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.format.as_str()), ("A", "localfs-1.0"));
        assert_eq!(spec.parameters["path"], "/srv/a=b:c");
        assert_eq!(spec.location(), "/srv/a=b:c");
        let spec: RepoSpec = "N=nfs-3.4:host:/export".parse().unwrap();
        assert_eq!(Value::Object(spec.parameters), json!({"server": "host", "export": "/export"}));
        for wrong in ["", "A", "A=", "A=localfs-1.0", "A=localfs-1.0:", "=localfs-1.0:/x", "A=:/x"] {
            assert!(wrong.parse::<RepoSpec>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn relative_paths_become_absolute() {
        let spec: RepoSpec = "A=localfs-1.0:images".parse().unwrap();
        assert_eq!(
            Path::new(spec.parameters["path"].as_str().unwrap()),
            env::current_dir().unwrap().join("images")
        );
    }

    #[test]
    fn a_config_file_keeps_its_order() {
        let text = "[repositories.z]\nformat='localfs-1.0'\npath='/z'\n[repositories.a]\nformat='nfs-3.4'\npath='/a'\n";
        let specs = parse(Path::new("c"), text).unwrap();
        assert_eq!(specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["z", "a"]);
        assert_eq!(specs[0].parameters.len(), 1);
        for wrong in ["[repo.a]\n", "[repositories]\na = 1\n", "[repositories.a]\npath='/a'\n", "x"] {
            assert!(parse(Path::new("c"), wrong).is_err(), "{wrong}");
        }
    }
}
