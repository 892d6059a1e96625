//! Models by path or by repository of the Hugging Face hub.

use super::IoError;
use std::path::PathBuf;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder.
    Path(PathBuf),
    /// A repository of the hub.
    Hub {
        /// For example `sentence-transformers/all-MiniLM-L6-v2`.
        repository: String,
        /// A branch, tag or commit; `main` when there is none.
        revision: Option<String>,
    },
}

/// The folder of a model; what the hub's cache lacks is downloaded.
///
/// The cache and its variables are Hugging Face's own: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`; with `HF_HUB_OFFLINE=1`
/// only the cache is asked. All files come from one commit.
///
/// # Errors
/// When the repository's name is malformed, a file is not to be had, or the crate was built without the feature `hub`.
pub fn resolve(source: &ModelSource) -> Result<PathBuf, IoError> {
    match source {
        ModelSource::Path(path) => Ok(path.clone()),
        #[cfg(not(feature = "hub"))]
        ModelSource::Hub { repository, .. } => Err(IoError::Hub {
            repository: repository.clone(),
            reason: "this build has no hub client; download the repository and name its folder as the model's path"
                .into(),
        }),
        #[cfg(feature = "hub")]
        ModelSource::Hub { repository, revision } => {
            client::Client::from_env().resolve(repository, revision.as_deref())
        }
    }
}

#[cfg(feature = "hub")]
mod client {
    use super::super::{IoError, hf::is_plain_name, read_json};
    use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
    use hf_hub::{Cache, Repo, RepoType};
    use serde_json::Value;
    use std::collections::BTreeSet;
    use std::env;
    use std::fmt::Display;
    use std::path::{Path, PathBuf};

    const INDEX: &str = "model.safetensors.index.json";
    const WEIGHTS: &str = "model.safetensors";
    /// Files that a merged model takes along; a repository may lack them.
    const OPTIONAL: [&str; 4] =
        ["tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "generation_config.json"];

    /// Asks the cache, then the hub.
    pub(super) struct Client {
        pub(super) cache: Cache,
        pub(super) endpoint: Option<String>,
        pub(super) offline: bool,
    }

    impl Client {
        pub(super) fn from_env() -> Self {
            let offline = env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false"));
            Self { cache: Cache::from_env(), endpoint: env::var("HF_ENDPOINT").ok(), offline }
        }

        pub(super) fn resolve(&self, repository: &str, revision: Option<&str>) -> Result<PathBuf, IoError> {
            let error = |reason: String| IoError::Hub { repository: repository.into(), reason };
            if !is_repository(repository) {
                return Err(error("not a repository's name, which looks like `owner/model`".into()));
            }
            let repo = |revision: &str| Repo::with_revision(repository.into(), RepoType::Model, revision.into());
            let revision = revision.unwrap_or("main");
            let snapshots = self.cache.path().join(repo(revision).folder_name()).join("snapshots");
            if let Some(folder) = self.cached(&repo(revision), &snapshots)? {
                return Ok(folder);
            }
            let unreachable = |reason: &dyn Display| {
                error(format!(
                    "the cache does not have it and it cannot be downloaded ({reason}); check the name, connect to the \
                     internet, set HF_TOKEN if it is private or gated, or download it elsewhere and name its folder as \
                     the model's path"
                ))
            };
            if self.offline {
                return Err(unreachable(&"HF_HUB_OFFLINE is set"));
            }
            let api = self.api().map_err(|e| unreachable(&e))?;
            let info = api.repo(repo(revision)).info().map_err(|e| unreachable(&e))?;
            let present: BTreeSet<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
            // All files come from the commit that the list came from, whatever happens to the branch meanwhile.
            let at_commit = api.repo(repo(&info.sha));
            let fetch = |file: &str| {
                if present.contains(file) {
                    at_commit.get(file).map_err(|e| unreachable(&e))
                } else {
                    Err(error(format!("it has no {file}, which is needed")))
                }
            };
            fetch("config.json")?;
            fetch("tokenizer.json")?;
            if present.contains(WEIGHTS) || !present.contains(INDEX) {
                fetch(WEIGHTS)?;
            } else {
                for shard in shards(&fetch(INDEX)?)? {
                    fetch(&shard)?;
                }
            }
            for file in OPTIONAL.into_iter().filter(|file| present.contains(file)) {
                fetch(file)?;
            }
            // From now on the revision is found without network.
            self.cache.repo(repo(revision)).create_ref(&info.sha).map_err(IoError::at(&snapshots))?;
            Ok(snapshots.join(info.sha))
        }

        /// The snapshot of a revision, when the cache has all of it that a model needs.
        fn cached(&self, repo: &Repo, snapshots: &Path) -> Result<Option<PathBuf>, IoError> {
            // A commit has no reference of its own in caches that Python filled, only its snapshot.
            let by_commit = is_plain_name(repo.revision()).then(|| snapshots.join(repo.revision()));
            let by_reference = || self.cache.repo(repo.clone()).get("config.json")?.parent().map(Path::to_path_buf);
            let Some(folder) = by_commit.filter(|folder| folder.is_dir()).or_else(by_reference) else {
                return Ok(None);
            };
            let has = |file: &str| folder.join(file).exists();
            let weights = has(WEIGHTS) || (has(INDEX) && shards(&folder.join(INDEX))?.iter().all(|shard| has(shard)));
            Ok((has("config.json") && has("tokenizer.json") && weights).then_some(folder))
        }

        fn api(&self) -> Result<Api, ApiError> {
            let mut builder = ApiBuilder::from_cache(self.cache.clone()).with_retries(3);
            if let Some(endpoint) = &self.endpoint {
                builder = builder.with_endpoint(endpoint.trim_end_matches('/').into());
            }
            if let Ok(token) = env::var("HF_TOKEN") {
                builder = builder.with_token(Some(token));
            }
            builder.build()
        }
    }

    fn shards(index: &Path) -> Result<BTreeSet<String>, IoError> {
        let object = read_json(index)?;
        let map = object.get("weight_map").and_then(Value::as_object);
        let files = map.into_iter().flat_map(|map| map.values()).filter_map(Value::as_str);
        // A name that leaves the folder is refused when the folder is opened.
        Ok(files.filter(|file| is_plain_name(file)).map(str::to_owned).collect())
    }

    fn is_repository(name: &str) -> bool {
        let part = |part: &str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.starts_with('.')
        };
        match name.split_once('/') {
            Some((owner, model)) => part(owner) && part(model),
            None => part(name),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use serde_json::json;
        use std::fs;
        use std::io::{BufRead, BufReader, Write};
        use std::net::TcpListener;
        use tempfile::TempDir;

        const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

        /// A cache as the hub's libraries lay it out, with one model at one commit.
        fn cache(with_reference: bool) -> TempDir {
            let root = tempfile::tempdir().unwrap();
            let model = root.path().join("models--owner--tiny");
            fs::create_dir_all(model.join("snapshots/abc123")).unwrap();
            for file in FILES {
                fs::write(model.join("snapshots/abc123").join(file), "{}").unwrap();
            }
            if with_reference {
                fs::create_dir_all(model.join("refs")).unwrap();
                fs::write(model.join("refs/main"), "abc123").unwrap();
            }
            root
        }

        fn client(root: &TempDir, offline: bool) -> Client {
            // Nothing listens on the discard port of this machine.
            let endpoint = Some("http://127.0.0.1:9".into());
            Client { cache: Cache::new(root.path().into()), endpoint, offline }
        }

        #[test]
        fn a_cached_model_needs_no_network() {
            let root = cache(true);
            let folder = root.path().join("models--owner--tiny/snapshots/abc123");
            for offline in [true, false] {
                assert_eq!(client(&root, offline).resolve("owner/tiny", None).unwrap(), folder);
            }
            assert_eq!(
                client(&cache(false), true).resolve("owner/tiny", Some("abc123")).unwrap().file_name().unwrap(),
                "abc123"
            );
        }

        #[test]
        fn without_network_or_cache_the_error_says_what_to_do() {
            let root = tempfile::tempdir().unwrap();
            for offline in [true, false] {
                let error = client(&root, offline).resolve("owner/tiny", None).unwrap_err().to_string();
                assert!(error.starts_with("hub repository owner/tiny: the cache does not have it and"), "{error}");
                assert!(error.ends_with("name its folder as the model's path"), "{error}");
            }
        }

        /// A hub of one repository at commit `c0ffee`, for the hub's own protocol: the list of files, then for each a
        /// look at its head and its bytes.
        fn hub(files: &'static [(&'static str, &'static str)]) -> String {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let mut request = String::new();
                    BufReader::new(&stream).read_line(&mut request).unwrap();
                    let path = request.split(' ').nth(1).unwrap();
                    let (head, body) = match path.strip_prefix("/owner/tiny/resolve/c0ffee/") {
                        None if path == "/api/models/owner/tiny/revision/main" => {
                            let siblings: Vec<Value> = files.iter().map(|(f, _)| json!({"rfilename": f})).collect();
                            (String::new(), json!({"siblings": siblings, "sha": "c0ffee"}).to_string())
                        }
                        None => panic!("no such path: {path}"),
                        Some(name) => {
                            let body = files.iter().find(|(file, _)| *file == name).unwrap().1;
                            let range = format!("Content-Range: bytes 0-{}/{}\r\n", body.len() - 1, body.len());
                            (format!("ETag: \"{name}\"\r\nx-repo-commit: c0ffee\r\n{range}"), body.to_string())
                        }
                    };
                    let length = body.len();
                    write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n{body}"
                    )
                    .unwrap();
                }
            });
            endpoint
        }

        #[test]
        fn a_model_is_downloaded_once_and_then_found_without_network() {
            const INDEX_TEXT: &str = r#"{"weight_map": {"a": "m-1.safetensors"}}"#;
            let endpoint = hub(&[
                ("config.json", "{}"),
                ("tokenizer.json", "[]"),
                ("vocab.txt", "a"),
                (INDEX, INDEX_TEXT),
                ("m-1.safetensors", "weights"),
                ("pytorch_model.bin", "is left alone"),
            ]);
            let root = tempfile::tempdir().unwrap();
            let online = Client { endpoint: Some(endpoint), ..client(&root, false) };
            let folder = online.resolve("owner/tiny", None).unwrap();
            let names = |folder: &Path| {
                let mut names: Vec<_> = folder.read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
                names.sort();
                names
            };
            assert_eq!(names(&folder), ["config.json", "m-1.safetensors", INDEX, "tokenizer.json", "vocab.txt"]);
            assert_eq!(fs::read_to_string(folder.join("m-1.safetensors")).unwrap(), "weights");
            assert_eq!(client(&root, true).resolve("owner/tiny", None).unwrap(), folder);
        }

        #[test]
        fn a_repository_without_weights_says_so() {
            let endpoint = hub(&[("config.json", "{}"), ("tokenizer.json", "{}")]);
            let root = tempfile::tempdir().unwrap();
            let online = Client { endpoint: Some(endpoint), ..client(&root, false) };
            let error = online.resolve("owner/tiny", None).unwrap_err().to_string();
            assert_eq!(error, "hub repository owner/tiny: it has no model.safetensors, which is needed");
        }

        #[test]
        fn a_name_that_would_leave_the_cache_is_refused() {
            for name in ["../up", "a/../b", "a/b/c", "", "/a", "a b", "http://x/y"] {
                let error = client(&cache(true), true).resolve(name, None).unwrap_err().to_string();
                assert!(error.contains("not a repository's name"), "{name}: {error}");
            }
        }
    }
}
