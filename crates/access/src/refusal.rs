//! Responses to refused requests: JSON with MLflow's and slipway's error codes, or a gRPC status in headers.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// The reason why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request has no token or an unknown one.
    Unauthenticated,
    /// The caller lacks the permission; holds the message.
    Forbidden(String),
    /// The caller's identity or permissions cannot be checked at the moment; holds the reason.
    Unavailable(String),
    /// The request is addressed to another host (RFC 9110, section 15.5.20); holds that host.
    Misdirected(String),
    /// A web page of another origin sent the request.
    ForeignOrigin,
    /// A bug in the server: a route without a guard, or a handler that did not check permissions.
    Unguarded,
}

impl Refusal {
    /// The error message of the response.
    pub fn message(self) -> String {
        self.parts().4
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.clone().parts().0
    }

    /// slipway's stable error code, such as `auth.required`.
    pub fn code(&self) -> &'static str {
        self.clone().parts().2
    }

    /// HTTP status, gRPC status, slipway's code, MLflow's code, message.
    fn parts(self) -> (StatusCode, &'static str, &'static str, &'static str, String) {
        match self {
            Self::Unauthenticated => (
                StatusCode::UNAUTHORIZED,
                "16",
                "auth.required",
                "UNAUTHENTICATED",
                "You are not authenticated: this server requires a token. `slipway token` prints the token of this machine.".into(),
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
                format!("This server does not serve the host '{host}'. If it is a name of this server, add it to the setting `hosts`."),
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
                "The server did not check permissions for this route, so the response is withheld. This is a bug in the server.".into(),
            ),
        }
    }

    /// Builds the response, as JSON or gRPC depending on the request's headers.
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
