//! How objects are stored: as JSON, which is sealed for kinds with secrets.

use std::sync::Arc;

use crate::encoded::Encoded;
use crate::error::Error;
use crate::object::Object;
use crate::repo::{Key, Stored};
use crate::resource::Resource;
use crate::seal::Sealer;

/// Maximum bytes of an object, as in etcd's default configuration.
pub(super) const MAX_OBJECT_BYTES: usize = 1536 * 1024;

/// Encodes and decodes states; cheap to clone.
#[derive(Clone)]
pub(super) struct Codec {
    sealer: Option<Arc<Sealer>>,
}

impl Codec {
    pub(super) fn new(sealer: Option<Sealer>) -> Self {
        Self { sealer: sealer.map(Arc::new) }
    }

    fn sealer(&self, resource: &Resource) -> Result<Option<&Sealer>, Error> {
        match (resource.sealed, &self.sealer) {
            (false, _) => Ok(None),
            (true, Some(sealer)) => Ok(Some(sealer)),
            (true, None) => Err(Error::Forbidden {
                resource: resource.group_resource(),
                name: String::new(),
                detail: "this server has no key to encrypt them with".into(),
                cause: None,
            }),
        }
    }

    /// Encodes an object without its version.
    pub(super) fn encode(&self, resource: &Resource, key: &Key, object: &Object) -> Result<Vec<u8>, Error> {
        let mut object = object.clone();
        object.metadata.resource_version.clear();
        if let Some(conversion) = &resource.conversion {
            (conversion.to_stored)(&mut object);
        }
        let json = object.to_json();
        if json.len() > MAX_OBJECT_BYTES {
            return Err(Error::TooLarge(MAX_OBJECT_BYTES));
        }
        match self.sealer(resource)? {
            Some(sealer) => sealer.seal(key, &json),
            None => Ok(json),
        }
    }

    /// A stored object as text, with the version `version`.
    pub(super) fn text(&self, resource: &Resource, stored: &Stored, version: i64) -> Result<Encoded, Error> {
        let text = match self.sealer(resource)? {
            Some(sealer) => Encoded::from_stored(resource, &sealer.open(&stored.key, &stored.body)?, version),
            None => Encoded::from_stored(resource, &stored.body, version),
        };
        match &resource.conversion {
            None => text,
            Some(conversion) => {
                let mut object = text?.into_object()?;
                (conversion.from_stored)(&mut object);
                Ok(Encoded::from(object))
            }
        }
    }

    /// Decodes a stored object.
    pub(super) fn decode(&self, resource: &Resource, stored: &Stored) -> Result<Object, Error> {
        self.text(resource, stored, stored.version)?.into_object()
    }
}
