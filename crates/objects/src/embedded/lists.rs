//! Lists. All pages of a list have the version of its first page, however the objects change in between.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use serde::{Deserialize, Serialize};

use super::Embedded;
use crate::encoded::Encoded;
use crate::error::{Error, json_error};
use crate::repo::{self, Clock, Key, Stored};
use crate::resource::Resource;
use crate::store::{ListOptions, Page, Selection};

/// Maximum number of objects that one query reads.
const MAX_ROWS: i64 = 500;

/// The encoding of continue tokens. Bits behind the last byte are ignored, as in Go.
const TOKENS: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// Where the next page begins; clients must not interpret it.
#[derive(Serialize, Deserialize)]
struct Continue {
    /// The version of the list.
    rv: i64,
    /// The namespace and name of the last object.
    after: (String, String),
}

fn expired() -> Error {
    Error::Expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
         the continue parameter."
            .into(),
    )
}

impl Continue {
    fn encode(&self) -> String {
        TOKENS.encode(serde_json::to_vec(self).expect("a number and two texts are plain data"))
    }

    fn decode(token: &str) -> Result<Self, Error> {
        let refuse =
            |detail: String| Error::BadRequest(format!("invalid continue token: continue key is not valid: {detail}"));
        let bytes = TOKENS.decode(token).map_err(|error| refuse(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| refuse(json_error(&bytes, &error)))
    }
}

/// The error of a version that is not retained.
pub(super) fn too_old(version: i64, clock: Clock) -> Error {
    Error::Expired(format!("too old resource version: {version} ({})", clock.compacted))
}

impl Embedded {
    /// The version of a list, where it begins, and the current clock.
    fn start(&self, resource: &Resource, options: &ListOptions) -> Result<(i64, Key), Error> {
        let mut after = Self::key(resource, "", "");
        let clock = self.inner.database.read_now(repo::clock)?;
        if !options.continue_token.is_empty() {
            let Continue { rv, after: (namespace, name) } = Continue::decode(&options.continue_token)?;
            if rv < clock.compacted || rv > clock.version {
                return Err(expired());
            }
            (after.namespace, after.name) = (namespace, name);
            return Ok((rv, after));
        }
        match options.exact_version {
            Some(version) if version < clock.compacted => Err(too_old(version, clock)),
            Some(version) if version > clock.version => {
                Err(Error::BadRequest(format!("Too large resource version: {version}, current: {}", clock.version)))
            }
            Some(version) => Ok((version, after)),
            None => Ok((clock.version, after)),
        }
    }

    async fn rows(&self, version: i64, after: &Key, selection: &Selection, limit: i64) -> Result<Vec<Stored>, Error> {
        let (after, namespace) = (after.clone(), selection.namespace.clone());
        let name = selection.fields.name().map(str::to_owned);
        self.inner
            .database
            .read(move |c| {
                // A state that was compacted since the list began would be missing from the result.
                if repo::clock(c)?.compacted > version {
                    return Err(expired());
                }
                Ok(repo::list(c, version, &after, namespace.as_deref(), name.as_deref(), limit)?)
            })
            .await
    }

    /// A page of a list as [`ObjectStore::list`](crate::store::ObjectStore::list) returns it, of the texts of the objects.
    ///
    /// # Errors
    /// As there.
    pub async fn list_texts(&self, resource: &Resource, options: &ListOptions) -> Result<Page<Encoded>, Error> {
        options.selection.check(resource)?;
        let (version, mut after) = self.start(resource, options)?;
        let mut items: Vec<Encoded> = Vec::new();
        let has_space = |items: &Vec<Encoded>| options.limit == 0 || items.len() < options.limit;
        loop {
            // One more than the page has, to find out whether another page follows.
            let wanted = i64::try_from(options.limit.saturating_sub(items.len()) + 1).unwrap_or(MAX_ROWS);
            let limit = if options.limit == 0 { MAX_ROWS } else { wanted.clamp(2, MAX_ROWS) };
            let rows = self.rows(version, &after, &options.selection, limit).await?;
            let is_last = i64::try_from(rows.len()).is_ok_and(|count| count < limit);
            for stored in rows {
                let text = self.inner.codec.text(resource, &stored, stored.version)?;
                // The query selects by namespace and name.
                if !options.selection.is_unconditional() && !options.selection.matches(resource, text.object()?) {
                    after = stored.key;
                    continue;
                }
                if !has_space(&items) {
                    let token = Continue { rv: version, after: (after.namespace.clone(), after.name.clone()) }.encode();
                    let remaining = self.remaining(&after, &options.selection).await?;
                    return Ok(Page { items, resource_version: version, continue_token: token, remaining });
                }
                after = stored.key;
                items.push(text);
            }
            if is_last {
                return Ok(Page { items, resource_version: version, continue_token: String::new(), remaining: None });
            }
        }
    }

    /// The number of objects after a key; unknown for selections that the database cannot count.
    async fn remaining(&self, after: &Key, selection: &Selection) -> Result<Option<i64>, Error> {
        if !selection.labels.is_empty() || !selection.fields.is_empty() {
            return Ok(None);
        }
        let (after, namespace) = (after.clone(), selection.namespace.clone());
        Ok(Some(self.inner.database.read(move |c| repo::count(c, &after, namespace.as_deref())).await?))
    }
}
