//! FedPipe: testkit.
