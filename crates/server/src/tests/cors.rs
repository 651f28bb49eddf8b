//! Cross-origin requests from browsers, over sockets: only the inference port accepts them.

use slipway_core::home::Home;
use slipway_serve::runtime::Preference;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::listen::Limits;
use crate::run::{Options, Server};
use crate::{ServerError, Stores};

fn options(home: &Home, cors_origins: &[&str]) -> Options {
    let any = ([127, 0, 0, 1], 0).into();
    Options {
        home: home.clone(),
        stores: Stores::default(),
        control: any,
        inference: any,
        grpc: any,
        gateway_only: false,
        token_file: None,
        no_auth: true,
        run_environment: Vec::new(),
        pipeline_images: Vec::new(),
        data_cache_bytes: None,
        hosts: Vec::new(),
        cors_origins: cors_origins.iter().map(|origin| (*origin).to_owned()).collect(),
        certificate: None,
        limits: Limits::default(),
        runtime: Preference::Builtin,
        onnxruntime: None,
        cluster: None,
    }
}

/// Sends a preflight request for `/v2` and returns the head of the response.
async fn preflight(address: std::net::SocketAddr, origin: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "OPTIONS /v2 HTTP/1.1\r\nhost: {address}\r\norigin: {origin}\r\naccess-control-request-method: GET\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn configured_origins_may_call_only_the_inference_port() {
    let home = Home::at(std::env::temp_dir().join(slipway_core::ids::hex32()));
    let server = Server::bind(options(&home, &["https://app.example"])).await.unwrap();
    let addresses = server.addresses.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async {
        let _ = stopped.await; // An error means that the sender was dropped, which stops the server too.
    }));
    let allowed = preflight(addresses.inference, "https://app.example").await;
    assert!(allowed.starts_with("HTTP/1.1 204"), "{allowed}");
    assert!(allowed.contains("access-control-allow-origin: https://app.example\r\n"), "{allowed}");
    for (address, origin) in [(addresses.control, "https://app.example"), (addresses.inference, "https://evil.example")]
    {
        let refused = preflight(address, origin).await;
        assert!(refused.starts_with("HTTP/1.1 403") && !refused.contains("access-control-allow"), "{refused}");
    }
    drop(stop);
    running.await.unwrap().unwrap();
    let invalid = Server::bind(options(&home, &["*"])).await;
    assert!(matches!(invalid, Err(ServerError::CorsOrigin(text)) if text == "*"));
    std::fs::remove_dir_all(home.root()).unwrap();
}
