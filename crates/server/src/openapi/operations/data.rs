//! The remotes of versioned data, once for those of the installation and once for those of a namespace.

use axum::http::{Method, StatusCode};
use slipway_data::wire::{Complete, Items, Parts, Remotes};

use super::{JSON, Operation, delete, get, post};
use crate::openapi::{BINARY, Content};

const BYTES: &[&str] = &[BINARY];

/// The operations below `$prefix`, with `$suffix` at the end of their names and `$of` at the end of their summaries.
macro_rules! below {
    ($prefix:literal, $suffix:literal, $of:literal) => {
        vec![
            get(
                concat!($prefix, "/remotes"),
                concat!("listDataRemotes", $suffix),
                concat!("Remotes of versioned data", $of),
            )
            .json::<Remotes>(),
            get(
                concat!($prefix, "/remotes/{remote}/items"),
                concat!("listData", $suffix),
                concat!("Paths of all objects of a remote", $of),
            )
            .json::<Items>(),
            post(
                concat!($prefix, "/remotes/{remote}/missing"),
                concat!("findMissingData", $suffix),
                concat!("Which of the objects a remote lacks", $of),
            )
            .request::<Items>(JSON)
            .json::<Items>(),
            post(
                concat!($prefix, "/remotes/{remote}/remove"),
                concat!("removeData", $suffix),
                concat!("Remove objects of a remote", $of),
            )
            .request::<Items>(JSON)
            .no_content(),
            post(
                concat!($prefix, "/remotes/{remote}/upload"),
                concat!("uploadDataBatch", $suffix),
                concat!("Upload small objects, each after a line `PATH BYTES`, to a remote", $of),
            )
            .request::<()>(BYTES)
            .no_content(),
            post(
                concat!($prefix, "/remotes/{remote}/download"),
                concat!("downloadDataBatch", $suffix),
                concat!("Download small objects, each after a line `PATH BYTES`, from a remote", $of),
            )
            .request::<Items>(JSON)
            .response(StatusCode::OK, Content::Binary),
            get(
                concat!($prefix, "/remotes/{remote}/uploads/{*path}"),
                concat!("listDataParts", $suffix),
                concat!("Parts of an unfinished upload that have arrived at a remote", $of),
            )
            .json::<Parts>(),
            post(
                concat!($prefix, "/remotes/{remote}/uploads/{*path}"),
                concat!("completeDataUpload", $suffix),
                concat!("Join the parts of an upload, and verify the content, in a remote", $of),
            )
            .request::<Complete>(JSON)
            .no_content(),
            Operation::new(
                Method::PUT,
                concat!($prefix, "/remotes/{remote}/parts/{number}/{*path}"),
                concat!("uploadDataPart", $suffix),
                concat!("Upload a part of an object to a remote", $of),
            )
            .request::<()>(BYTES)
            .no_content(),
            get(
                concat!($prefix, "/remotes/{remote}/{*path}"),
                concat!("downloadData", $suffix),
                concat!("Download an object, or a range of it, from a remote", $of),
            )
            .response(StatusCode::OK, Content::Binary)
            .response(StatusCode::PARTIAL_CONTENT, Content::Binary),
            Operation::new(
                Method::PUT,
                concat!($prefix, "/remotes/{remote}/{*path}"),
                concat!("uploadData", $suffix),
                concat!("Upload an object, whose content is verified, to a remote", $of),
            )
            .request::<()>(BYTES)
            .no_content(),
            post(
                concat!($prefix, "/remotes/{remote}/{*path}"),
                concat!("postData", $suffix),
                concat!("Upload an object as DVC does by default, to a remote", $of),
            )
            .request::<()>(BYTES)
            .no_content(),
            delete(
                concat!($prefix, "/remotes/{remote}/{*path}"),
                concat!("deleteData", $suffix),
                concat!("Remove an object from a remote", $of),
            ),
        ]
    };
}

pub(super) fn operations() -> Vec<Operation> {
    let mut all = below!("/api/v1/data", "", "");
    all.extend(below!("/api/v1/data/namespaces/{namespace}", "OfNamespace", " of a namespace"));
    all
}
