"""The command ``issue_batch``: from a file of users to a file of results, by way of the issuer as for any request."""
