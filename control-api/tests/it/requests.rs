//! What is true of every request.

use reqwest::StatusCode;

use crate::harness::Api;

#[tokio::test]
async fn an_unknown_endpoint_is_a_problem() {
    let api = Api::start().await;
    let (status, problem) = api.get("/nothing").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!((&problem["status"], &problem["statusCode"]), (&404.into(), &404.into()));
    assert_eq!(problem["detail"], problem["message"]);
}

#[tokio::test]
async fn an_id_is_one_segment() {
    let api = Api::start().await;
    for id in ["..%2fcustomers", "a%2Fb", "a%5Cb", "%00", "%ff"] {
        let (status, problem) = api.get(&format!("/meters/{id}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{id}: {problem}");
    }
}
