//! A bare axum JSON echo: the upper bound for the HTTP stack of the gateway.

use axum::{Json, Router, routing::post, serve::ListenerExt};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let router = Router::new().route("/", post(|Json(body): Json<serde_json::Value>| async { Json(body) }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), router).await
}
