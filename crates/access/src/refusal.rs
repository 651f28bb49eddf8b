//! How a refusal looks: JSON with MLflow's and our own codes, or gRPC's status in headers.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No token, or none that is known.
    Unauthenticated,
    /// The caller is known and may not do this.
    Forbidden(String),
    /// Who the caller is, or what it may do, cannot be checked now.
    Unavailable(String),
    /// The request names another host than this server (RFC 9110, section 15.5.20).
    Misdirected(String),
    /// A web page of another origin sent the request.
    ForeignOrigin,
    /// The server itself is wrong: a route without a guard, a handler that did not decide.
    Unguarded,
}

impl Refusal {
    /// What the caller is told.
    pub fn message(self) -> String {
        self.parts().4
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.clone().parts().0
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.clone().parts().2
    }

    /// HTTP status, gRPC status, own code, MLflow's code, message.
    fn parts(self) -> (StatusCode, &'static str, &'static str, &'static str, String) {
        match self {
            Self::Unauthenticated => (
                StatusCode::UNAUTHORIZED,
                "16",
                "auth.required",
                "UNAUTHENTICATED",
                "You are not authenticated: this server asks for a token. `slipway token` prints the one of this machine.".into(),
            ),
            Self::Forbidden(message) => (StatusCode::FORBIDDEN, "7", "auth.forbidden", "PERMISSION_DENIED", message),
            Self::Unavailable(reason) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "14",
                "auth.unreachable",
                "TEMPORARILY_UNAVAILABLE",
                format!("The caller's permissions cannot be checked right now: {reason}"),
            ),
            Self::Misdirected(host) => (
                StatusCode::MISDIRECTED_REQUEST,
                "7",
                "auth.host",
                "PERMISSION_DENIED",
                format!("This server does not answer for the host '{host}'. Add the name to the setting `hosts` if it is one of its names."),
            ),
            Self::ForeignOrigin => (
                StatusCode::FORBIDDEN,
                "7",
                "auth.foreign",
                "PERMISSION_DENIED",
                "This request comes from a web page of another origin and is refused.".into(),
            ),
            Self::Unguarded => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "13",
                "auth.unguarded",
                "INTERNAL_ERROR",
                "This route has not been authorized, so its answer is withheld. This is a defect of the server.".into(),
            ),
        }
    }

    /// The response, in the protocol of the request with these headers.
    pub fn response(self, request: &HeaderMap) -> Response {
        let (status, grpc, code, error_code, message) = self.parts();
        if request.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc")) {
            // gRPC carries its status in headers of a 200 response ("Trailers-Only" in its HTTP/2 protocol description).
            let plain: String = message.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).collect();
            let headers =
                [("content-type", "application/grpc"), ("grpc-status", grpc), ("grpc-message", plain.as_str())];
            return (StatusCode::OK, headers).into_response();
        }
        let body = serde_json::json!({"error_code": error_code, "message": message, "code": code});
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"slipway\""));
        }
        response
    }
}
