//! FedPipe: federation.
