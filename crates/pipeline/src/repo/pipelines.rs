//! Pipelines, their versions and the tags of both.

use slipway_store::sql::{Connection, Result as Read, Row, params};

use super::page::{Page, Source, page};
use super::specs;
use crate::Error;
use crate::entity::{Pipeline, Tags, Version};
use crate::listing::{Fields, Listing, text, time};

/// Fields of pipelines.
pub(crate) const FIELDS: Fields = Fields {
    object: "Pipeline",
    key: "pipeline_id",
    fields: &[
        text("pipeline_id", "pipeline_id"),
        text("id", "pipeline_id"),
        text("name", "name"),
        text("display_name", "display_name"),
        time("created_at", "created_at"),
        text("description", "description"),
        text("namespace", "namespace"),
    ],
    has_tags: true,
};

/// Fields of versions.
pub(crate) const VERSION_FIELDS: Fields = Fields {
    object: "PipelineVersion",
    key: "version_id",
    fields: &[
        text("pipeline_version_id", "version_id"),
        text("id", "version_id"),
        text("name", "name"),
        text("display_name", "display_name"),
        time("created_at", "created_at"),
        text("description", "description"),
        text("pipeline_id", "pipeline_id"),
        text("code_source_url", "code_source_url"),
    ],
    has_tags: true,
};

const COLUMNS: &str = "pipeline_id, namespace, name, display_name, description, created_at";
const VERSION_COLUMNS: &str =
    "version_id, pipeline_id, name, display_name, description, created_at, package_url, code_source_url, spec";

fn pipeline(row: &Row<'_>) -> Read<Pipeline> {
    Ok(Pipeline {
        pipeline_id: row.get(0)?,
        namespace: row.get(1)?,
        name: row.get(2)?,
        display_name: row.get(3)?,
        description: row.get(4)?,
        created_at: row.get(5)?,
        tags: Tags::new(),
    })
}

fn version(row: &Row<'_>) -> Read<Version> {
    Ok(Version {
        version_id: row.get(0)?,
        pipeline_id: row.get(1)?,
        name: row.get(2)?,
        display_name: row.get(3)?,
        description: row.get(4)?,
        created_at: row.get(5)?,
        package_url: row.get(6)?,
        code_source_url: row.get(7)?,
        spec: row.get(8)?,
        tags: Tags::new(),
    })
}

fn tags(c: &Connection, owner: &str) -> Result<Tags, Error> {
    let rows = c.rows("SELECT key, value FROM pipeline_tags WHERE owner = ?1", [owner], |row| {
        Ok((row.get::<String>(0)?, row.get::<String>(1)?))
    })?;
    Ok(rows.into_iter().collect())
}

/// Replaces the tags of a pipeline or version.
pub(crate) fn set_tags(c: &Connection, owner: &str, tags: &Tags) -> Result<(), Error> {
    c.execute("DELETE FROM pipeline_tags WHERE owner = ?1", [owner])?;
    let rows = tags.iter().map(|(key, value)| [owner, key.as_str(), value.as_str()]);
    c.execute_each("INSERT INTO pipeline_tags VALUES (?1, ?2, ?3)", rows)?;
    Ok(())
}

/// Inserts a pipeline.
pub(crate) fn insert(c: &Connection, p: &Pipeline) -> Result<(), Error> {
    let inserted = c.execute(
        "INSERT INTO pipeline_pipelines VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![p.pipeline_id, p.namespace, p.name, p.display_name, p.description, p.created_at],
    );
    match inserted {
        Ok(_) => set_tags(c, &p.pipeline_id, &p.tags),
        Err(e) if e.is_duplicate() => Err(Error::Exists(format!(
            "Failed to create a new pipeline. The name {} already exist. Please specify a new name",
            p.name
        ))),
        Err(e) => Err(e.into()),
    }
}

/// The pipeline with this id.
pub(crate) fn find(c: &Connection, id: &str) -> Result<Pipeline, Error> {
    let sql = format!("SELECT {COLUMNS} FROM pipeline_pipelines WHERE pipeline_id = ?1");
    let found = c.first(&sql, [id], pipeline)?.ok_or_else(|| Error::NotFound(format!("Pipeline {id} not found")))?;
    Ok(Pipeline { tags: tags(c, id)?, ..found })
}

/// The pipeline with this name.
pub(crate) fn find_by_name(c: &Connection, namespace: &str, name: &str) -> Result<Pipeline, Error> {
    let sql = format!("SELECT {COLUMNS} FROM pipeline_pipelines WHERE namespace = ?1 AND name = ?2");
    let found = c.first(&sql, [namespace, name], pipeline)?;
    let found = found.ok_or_else(|| Error::NotFound(format!("Namespace/Pipeline {namespace}/{name} not found")))?;
    Ok(Pipeline { tags: tags(c, &found.pipeline_id)?, ..found })
}

/// Pipelines of a namespace.
pub(crate) fn list(c: &Connection, namespace: &str, listing: &Listing) -> Result<Page<Pipeline>, Error> {
    let scope = [("namespace", namespace)];
    let source = Source { table: "pipeline_pipelines", columns: COLUMNS, width: 6, scope: &scope };
    let mut found = page(c, &source, &FIELDS, listing, pipeline)?;
    for item in &mut found.items {
        item.tags = tags(c, &item.pipeline_id)?;
    }
    Ok(found)
}

/// Changes the name that users see and the tags, where they are given.
pub(crate) fn update(c: &Connection, id: &str, display_name: &str, tags: Option<&Tags>) -> Result<Pipeline, Error> {
    find(c, id)?;
    if !display_name.is_empty() {
        c.execute("UPDATE pipeline_pipelines SET display_name = ?2 WHERE pipeline_id = ?1", [id, display_name])?;
    }
    if let Some(tags) = tags {
        set_tags(c, id, tags)?;
    }
    find(c, id)
}

/// Deletes a pipeline with its versions.
pub(crate) fn delete(c: &Connection, id: &str) -> Result<(), Error> {
    find(c, id)?;
    let versions =
        c.rows("SELECT version_id FROM pipeline_versions WHERE pipeline_id = ?1", [id], |row| row.get::<String>(0))?;
    for version in versions {
        delete_version(c, &version)?;
    }
    set_tags(c, id, &Tags::new())?;
    c.execute("DELETE FROM pipeline_pipelines WHERE pipeline_id = ?1", [id])?;
    Ok(())
}

/// Inserts a version, whose specification is stored already.
pub(crate) fn insert_version(c: &Connection, v: &Version) -> Result<(), Error> {
    let inserted = c.execute(
        "INSERT INTO pipeline_versions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            v.version_id,
            v.pipeline_id,
            v.name,
            v.display_name,
            v.description,
            v.created_at,
            v.package_url,
            v.code_source_url,
            v.spec
        ],
    );
    match inserted {
        Ok(_) => set_tags(c, &v.version_id, &v.tags),
        Err(e) if e.is_duplicate() => Err(Error::Exists(format!(
            "Failed to create a new pipeline version. The name {} already exist. Specify a new name",
            v.name
        ))),
        Err(e) => Err(e.into()),
    }
}

/// The version with this id.
pub(crate) fn find_version(c: &Connection, id: &str) -> Result<Version, Error> {
    let sql = format!("SELECT {VERSION_COLUMNS} FROM pipeline_versions WHERE version_id = ?1");
    let found = c.first(&sql, [id], version)?;
    let found = found.ok_or_else(|| Error::NotFound(format!("PipelineVersion {id} not found")))?;
    Ok(Version { tags: tags(c, id)?, ..found })
}

/// The newest version of a pipeline; `None` if it has no versions.
pub(crate) fn newest_version(c: &Connection, pipeline_id: &str) -> Result<Option<Version>, Error> {
    let sql = format!(
        "SELECT {VERSION_COLUMNS} FROM pipeline_versions WHERE pipeline_id = ?1 ORDER BY created_at DESC, version_id DESC LIMIT 1"
    );
    let found = c.first(&sql, [pipeline_id], version)?;
    found.map(|found| Ok(Version { tags: tags(c, &found.version_id)?, ..found })).transpose()
}

/// Versions of a pipeline.
pub(crate) fn list_versions(c: &Connection, pipeline_id: &str, listing: &Listing) -> Result<Page<Version>, Error> {
    let scope = [("pipeline_id", pipeline_id)];
    let source = Source { table: "pipeline_versions", columns: VERSION_COLUMNS, width: 9, scope: &scope };
    let mut found = page(c, &source, &VERSION_FIELDS, listing, version)?;
    for item in &mut found.items {
        item.tags = tags(c, &item.version_id)?;
    }
    Ok(found)
}

/// Changes the name that users see and the tags of a version, where they are given.
pub(crate) fn update_version(
    c: &Connection,
    id: &str,
    display_name: &str,
    tags: Option<&Tags>,
) -> Result<Version, Error> {
    find_version(c, id)?;
    if !display_name.is_empty() {
        c.execute("UPDATE pipeline_versions SET display_name = ?2 WHERE version_id = ?1", [id, display_name])?;
    }
    if let Some(tags) = tags {
        set_tags(c, id, tags)?;
    }
    find_version(c, id)
}

/// Deletes a version.
pub(crate) fn delete_version(c: &Connection, id: &str) -> Result<(), Error> {
    let found = find_version(c, id)?;
    set_tags(c, id, &Tags::new())?;
    c.execute("DELETE FROM pipeline_versions WHERE version_id = ?1", [id])?;
    specs::delete_unused(c, &found.spec)
}
