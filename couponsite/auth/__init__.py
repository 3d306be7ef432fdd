"""Authentication: tokens and sessions of API calls, the endpoints that issue tokens, and the throttling of logins."""
