// Uses the OAuth 2 endpoints through openid-client, found by discovery. What to do is JSON on standard input, what came
// of it JSON on standard output.
import { text } from 'node:stream/consumers'
import * as client from 'openid-client'

const { issuer, client_id, client_secret, method, scope, refresh_token } = JSON.parse(await text(process.stdin))

function found(secret) {
  const authentication = { client_secret_basic: client.ClientSecretBasic, client_secret_post: client.ClientSecretPost }
  const options = { algorithm: 'oauth2', execute: [client.allowInsecureRequests] }
  return client.discovery(new URL(issuer), client_id, undefined, authentication[method](secret), options)
}

async function refusal(promise) {
  try {
    return { unexpected: await promise }
  } catch (error) {
    const [challenge] = Array.isArray(error.cause) ? error.cause : []
    return { kind: error.constructor.name, status: error.status, error: error.error, scheme: challenge?.scheme }
  }
}

const config = await found(client_secret)
const stranger = await found('not the secret')
const granted = await client.clientCredentialsGrant(config, { scope })
const active = await client.tokenIntrospection(config, granted.access_token)
await client.tokenRevocation(config, granted.access_token)
const revoked = await client.tokenIntrospection(config, granted.access_token)
const refreshed = await client.refreshTokenGrant(config, refresh_token)
await client.tokenRevocation(config, refreshed.refresh_token)
console.log(
  JSON.stringify({
    metadata: config.serverMetadata(),
    granted: { ...granted, lives_s: granted.expiresIn() },
    active,
    revoked,
    refreshed,
    ended: await refusal(client.refreshTokenGrant(config, refreshed.refresh_token)),
    excessive: await refusal(client.clientCredentialsGrant(config, { scope: 'auth:superuser' })),
    unknown: await refusal(client.clientCredentialsGrant(stranger)),
  }),
)
