// Package gatewayredis provides limits that many gateways share through Redis or Valkey.
package gatewayredis
